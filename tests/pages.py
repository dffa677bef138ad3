"""Looks at report.html in headless Chromium at three widths, light and dark.

    python -m tests.pages [RUN | PAGE ...] [--axe FILE]

A page must have something on it, must not be wider than its window, has no error on its console, and is drawn within a
second. The pictures are kept in pages/. Without RUN a training of a few seconds is run first. --axe: axe.min.js of the npm
package axe-core (`npm pack axe-core`), which then must find no serious fault of accessibility.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import PROGRAMS, Browser, find_chromium
from tests.e2e import tiny

WIDTHS = (400, 1200, 2400)
HEIGHT = 2400
SECONDS = 1.0  # until the largest part of a page is drawn
OUT = Path("pages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", type=Path, metavar="RUN | PAGE")
    parser.add_argument("--axe", type=Path)
    options = parser.parse_args()
    program = find_chromium()
    if program is None:
        sys.exit(f"no Chromium found: one of {', '.join(PROGRAMS)} must be on the PATH")
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in options.sources or [train(Path(folder))]:
            page = source / "report.html" if source.is_dir() else source
            if not page.is_file():
                sys.exit(f"{page} is missing: finetune report {source}")
            faults += look(program, page, f"{source.resolve().name}-{page.stem}", options.axe)
    print(f"pictures: {OUT}/")
    if faults:
        sys.exit("\n".join(faults))


def look(program: str, page: Path, name: str, axe: Path | None) -> list[str]:
    """Takes pictures under this name; what is wrong with the page."""
    faults = [fault for width in WIDTHS for fault in fits(program, page, width)]
    for width in WIDTHS:
        faults += [fault for dark in (False, True) for fault in shows(program, page, name, width, dark=dark)]
    if axe is not None:
        faults += [fault for dark in (False, True) for fault in barriers(program, page, axe, dark=dark)]
    return faults


def train(folder: Path) -> Path:
    """A run of the tests' tiny recipe."""
    tiny.write_data(folder)
    recipe = tiny.write_recipe(folder)
    command = [sys.executable, "-m", "finetune", "train", str(recipe), "--run-dir", str(folder / "run")]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    return folder / "run"


def fits(program: str, page: Path, width: int) -> list[str]:
    """Whether a browser that knows no page yet draws it within its window, in time, without an error on the console."""
    with Browser(program) as browser:
        drawn = browser.draw(page, width)
    seconds, needed = max(drawn["largest"], drawn["loaded"]) / 1000, drawn["width"]
    size = page.stat().st_size
    print(
        f"{page} at {width} px: {needed} px wide, drawn in {seconds:.2f} s, {drawn['nodes']:,} elements, {size:,} bytes"
    )
    faults = [f"{page} needs {needed} px in a window of {width} px"] if needed > width else []
    faults += [f"{page}: {fault}" for fault in drawn["faults"]]
    return faults + ([f"{page} takes {seconds:.2f} s to draw"] if seconds > SECONDS else [])


def shows(program: str, page: Path, name: str, width: int, *, dark: bool) -> list[str]:
    """Takes a picture; whether the page is empty."""
    OUT.mkdir(exist_ok=True)
    picture = OUT / f"{name}-{width}{'-dark' if dark else ''}.png"
    chromium(program, width, f"--screenshot={picture.resolve()}", page.resolve().as_uri(), dark=dark)
    colors = len(Image.open(picture).convert("RGB").getcolors(1 << 24) or ())
    return [] if colors > 16 else [f"{picture} is empty"]


def barriers(program: str, page: Path, axe: Path, *, dark: bool) -> list[str]:
    """Serious and critical faults that axe-core finds in the page."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    code = axe.read_text(encoding="utf-8").replace("</script>", "<\\/script>")
    listed = "JSON.stringify(found.violations.map(one => [one.impact, one.id]))"
    run = f"axe.run().then(found => {{ document.title = 'axe ' + {listed} }})"
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(text.replace("</body>", f"<script>{code}</script><script>onload = () => {run}</script></body>"))
        file.flush()
        dumped = chromium(
            program, 1200, "--virtual-time-budget=20000", "--dump-dom", Path(file.name).as_uri(), dark=dark
        )
    answer = re.search(r"<title>axe (.*?)</title>", dumped)
    if answer is None:
        sys.exit("axe-core gave no answer")
    found = json.loads(html.unescape(answer[1]))
    print(f"{page.name}, {'dark' if dark else 'light'}: {len(found)} kinds of faults: {found}")
    return [f"{page.name}: {name} ({impact})" for impact, name in found if impact in ("serious", "critical")]


def chromium(program: str, width: int, *arguments: str, dark: bool = False) -> str:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    window = f"--window-size={max(width, 500)},{HEIGHT}"
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", scheme, window]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, timeout=120).stdout


if __name__ == "__main__":
    main()
