// Reads values out of the charts (pointer or arrow keys) and draws enlarged parts of them (drag, + and -, Escape).
// Each <figure class="chart"> holds a drawing that is whole without this script, and its points as JSON.
"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const make = (name, attributes, text) => {
    const element = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const short = (value) => {
    const size = Math.abs(value);
    if (value !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
    return String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
  };
  const ticks = (low, high, count) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) || 10);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
    return found;
  };

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.svg = figure.querySelector("svg");
      this.data = JSON.parse(figure.querySelector("script").textContent);
      this.readout = figure.querySelector("output");
      const [, , width, height] = this.svg.getAttribute("viewBox").split(" ").map(Number);
      const [left, top, right, bottom] = this.data.box;
      this.box = { left: left * width, top: top * height, right: right * width, bottom: bottom * height };
      this.whole = { x: this.data.x, y: this.data.y };
      this.view = this.whole;
      this.original = [...this.svg.childNodes];
      this.overlay = this.svg.appendChild(make("g", { "aria-hidden": "true" }));
      this.xs = [...new Set(this.data.lines.filter((line) => !line.plain).flatMap((line) => line.points.map((point) => point[0])))]
        .sort((one, other) => one - other);
      this.at = this.xs.length - 1;
      figure.tabIndex = 0;
      this.listen();
    }

    listen() {
      this.figure.addEventListener("keydown", (event) => this.key(event));
      this.figure.addEventListener("focus", () => this.show(this.at));
      this.svg.addEventListener("pointermove", (event) => this.move(event));
      this.svg.addEventListener("pointerleave", () => { if (this.start === undefined) this.hide(); });
      this.svg.addEventListener("pointerdown", (event) => { this.start = this.value(event); this.svg.setPointerCapture(event.pointerId); });
      this.svg.addEventListener("pointerup", (event) => this.release(event));
      this.svg.addEventListener("dblclick", () => this.zoom(this.whole.x));
    }

    // Data under the pointer.
    value(event) {
      const bounds = this.svg.getBoundingClientRect(), width = this.svg.viewBox.baseVal.width;
      const share = ((event.clientX - bounds.left) / bounds.width * width - this.box.left) / (this.box.right - this.box.left);
      return this.view.x[0] + Math.min(1, Math.max(0, share)) * (this.view.x[1] - this.view.x[0]);
    }

    across(x) { return this.box.left + (x - this.view.x[0]) / (this.view.x[1] - this.view.x[0]) * (this.box.right - this.box.left); }

    up(y) {
      const scale = this.data.log ? Math.log10 : (value) => value;
      const [low, high] = this.view.y.map(scale);
      return this.box.bottom - (scale(y) - low) / (high - low) * (this.box.bottom - this.box.top);
    }

    move(event) {
      const here = this.value(event);
      if (this.start !== undefined) {
        const edges = [this.across(this.start), this.across(here)].sort((one, other) => one - other);
        this.overlay.replaceChildren(make("rect", { x: edges[0], y: this.box.top, width: edges[1] - edges[0], height: this.box.bottom - this.box.top, class: "chosen" }));
        return;
      }
      let nearest = 0;
      this.xs.forEach((x, index) => { if (Math.abs(x - here) < Math.abs(this.xs[nearest] - here)) nearest = index; });
      this.show(nearest);
    }

    release(event) {
      const from = this.start, to = this.value(event);
      this.start = undefined;
      if (Math.abs(this.across(from) - this.across(to)) > 8) this.zoom([Math.min(from, to), Math.max(from, to)]);
    }

    key(event) {
      const [low, high] = this.view.x, width = high - low, middle = this.xs[this.at];
      const actions = {
        ArrowLeft: () => this.show(this.at - 1), ArrowRight: () => this.show(this.at + 1),
        Home: () => this.show(0), End: () => this.show(this.xs.length - 1),
        "+": () => this.zoom([middle - width / 4, middle + width / 4]), "=": () => this.zoom([middle - width / 4, middle + width / 4]),
        "-": () => this.zoom([low - width / 2, high + width / 2]), Escape: () => this.zoom(this.whole.x),
      };
      if (!actions[event.key] || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      actions[event.key]();
    }

    // A rule at one x, and the value of every line there.
    show(index) {
      this.at = Math.min(this.xs.length - 1, Math.max(0, index));
      const x = this.xs[this.at], shown = [], parts = [];
      for (const line of this.data.lines) {
        if (line.plain || !line.points.length) continue;
        const near = line.points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
        if (Math.abs(this.across(near[0]) - this.across(x)) > 24) continue;
        parts.push(`${line.label} ${short(near[1])}`);
        const y = this.up(near[1]);
        if (y >= this.box.top - 2 && y <= this.box.bottom + 2) shown.push(make("circle", { cx: this.across(near[0]), cy: y, r: 3.5, style: `fill: var(--series-${line.color})` }));
      }
      if (this.across(x) >= this.box.left - 1 && this.across(x) <= this.box.right + 1)
        shown.unshift(make("line", { x1: this.across(x), x2: this.across(x), y1: this.box.top, y2: this.box.bottom, class: "rule" }));
      this.overlay.replaceChildren(...shown);
      this.readout.textContent = `${this.data.across} ${short(x)}: ${parts.join(" · ")}`;
    }

    hide() { this.overlay.replaceChildren(); this.readout.textContent = ""; }

    // The lines between two x, with axes of their own; the whole drawing again where that is all of it.
    zoom([low, high]) {
      low = Math.max(low, this.whole.x[0]);
      high = Math.min(high, this.whole.x[1]);
      if (!(high > low)) return;
      const whole = low <= this.whole.x[0] && high >= this.whole.x[1];
      for (const node of this.original) if (node.style) node.style.display = whole ? "" : "none";
      if (this.enlarged) this.enlarged.remove();
      this.enlarged = undefined;
      this.view = whole ? this.whole : this.seen(low, high);
      if (!whole) this.svg.insertBefore(this.enlarged = this.draw(), this.overlay);
      this.hide();
    }

    seen(low, high) {
      const inside = this.data.lines.flatMap((line) => line.points.filter(([x]) => x >= low && x <= high).map(([, y]) => y));
      if (!inside.length) return { x: [low, high], y: this.whole.y };
      const [least, most] = [Math.min(...inside), Math.max(...inside)];
      const margin = (most - least) * 0.08 || Math.abs(most) * 0.05 || 1;
      return { x: [low, high], y: this.data.log ? [least * 0.9, most * 1.1] : [least - margin, most + margin] };
    }

    draw() {
      const group = make("g", { class: "enlarged", "aria-hidden": "true" }), { left, right, top, bottom } = this.box;
      for (const x of ticks(...this.view.x, 5)) {
        group.append(make("line", { x1: this.across(x), x2: this.across(x), y1: top, y2: bottom, class: "grid" }));
        group.append(make("text", { x: this.across(x), y: bottom + 13, "text-anchor": "middle" }, short(x)));
      }
      for (const y of ticks(...this.view.y, 4)) {
        if (this.data.log && y <= 0) continue;
        group.append(make("line", { x1: left, x2: right, y1: this.up(y), y2: this.up(y), class: "grid" }));
        group.append(make("text", { x: left - 5, y: this.up(y) + 3, "text-anchor": "end" }, short(y)));
      }
      group.append(make("text", { x: (left + right) / 2, y: bottom + 27, "text-anchor": "middle" }, this.data.across));
      for (const line of this.data.lines) {
        const width = this.view.x[1] - this.view.x[0];
        const near = line.points.filter(([x]) => x >= this.view.x[0] - width && x <= this.view.x[1] + width);
        const path = near.map(([x, y], index) => `${index ? "L" : "M"}${this.across(x).toFixed(1)} ${this.up(y).toFixed(1)}`).join("");
        const style = line.plain ? "stroke: var(--line); stroke-dasharray: 4 3" : `stroke: var(--series-${line.color})`;
        group.append(make("path", { d: path, style, class: "curve" }));
      }
      const clip = make("clipPath", { id: `clip-${Chart.count = (Chart.count || 0) + 1}` });
      clip.append(make("rect", { x: left, y: top, width: right - left, height: bottom - top }));
      group.prepend(clip);
      for (const curve of group.querySelectorAll(".curve")) curve.setAttribute("clip-path", `url(#${clip.id})`);
      return group;
    }
  }

  for (const figure of document.querySelectorAll("figure.chart")) new Chart(figure);
})();
