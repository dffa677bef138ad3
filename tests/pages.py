"""Looks at report.html in headless Chromium at three widths, light and dark: `python -m tests.pages [RUN | PAGE] [--axe FILE]`.

A page must have something on it and must not be wider than its window. The pictures are kept in pages/. Without RUN a
training of a few seconds is run first. --axe: axe.min.js of the npm package axe-core (`npm pack axe-core`), which then must
find no serious fault of accessibility.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.e2e import tiny

WIDTHS = (400, 1200, 2400)
HEIGHT = 2400
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OUT = Path("pages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, metavar="RUN | PAGE")
    parser.add_argument("--axe", type=Path)
    options = parser.parse_args()
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        sys.exit(f"no Chromium found: one of {', '.join(PROGRAMS)} must be on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or train(Path(folder))
        page = source / "report.html" if source.is_dir() else source
        if not page.is_file():
            sys.exit(f"{page} is missing: finetune report {source}")
        faults = [
            fault for width in WIDTHS for dark in (False, True) for fault in look(program, page, width, dark=dark)
        ]
        if options.axe is not None:
            faults += [fault for dark in (False, True) for fault in barriers(program, page, options.axe, dark=dark)]
    print(f"pictures: {OUT}/")
    if faults:
        sys.exit("\n".join(faults))


def train(folder: Path) -> Path:
    """A run of the tests' tiny recipe."""
    tiny.write_data(folder)
    recipe = tiny.write_recipe(folder)
    command = [sys.executable, "-m", "finetune", "train", str(recipe), "--run-dir", str(folder / "run")]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    return folder / "run"


def look(program: str, page: Path, width: int, *, dark: bool) -> list[str]:
    """Takes a picture; what is wrong with the page at this width."""
    OUT.mkdir(exist_ok=True)
    name = f"{page.stem}-{width}{'-dark' if dark else ''}"
    picture = OUT / f"{name}.png"
    chromium(program, width, f"--screenshot={picture.resolve()}", page.resolve().as_uri(), dark=dark)
    colors = len(Image.open(picture).convert("RGB").getcolors(1 << 24) or ())
    faults = [] if colors > 16 else [f"{name} is empty"]
    if dark:
        return faults
    needed = content_width(program, page, width)
    print(f"{page.name} at {width} px: {colors} colors, content is {needed} px wide")
    return faults + ([f"{page.name} needs {needed} px in a window of {width} px"] if needed > width else [])


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


def content_width(program: str, page: Path, width: int) -> int:
    """Pixels that the page's content needs, measured in a frame of the window's width: the report itself runs no scripts."""
    inner = html.escape(page.read_text(encoding="utf-8"))
    measure = "document.title = 'needs ' + document.querySelector('iframe').contentDocument.documentElement.scrollWidth"
    frame = f'<iframe style="width:{width}px;height:{HEIGHT}px;border:0" srcdoc="{inner}"></iframe>'
    outer = (
        f"<!doctype html><title></title><body style='margin:0'>{frame}<script>onload = () => {{ {measure} }}</script>"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(outer)
        file.flush()
        found = re.search(r"<title>needs (\d+)", chromium(program, width, "--dump-dom", Path(file.name).as_uri()))
    if found is None:
        sys.exit("Chromium did not measure the page")
    return int(found[1])


def chromium(program: str, width: int, *arguments: str, dark: bool = False) -> str:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    window = f"--window-size={max(width, 500)},{HEIGHT}"
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", scheme, window]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, timeout=120).stdout


if __name__ == "__main__":
    main()
