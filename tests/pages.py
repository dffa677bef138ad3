"""Looks at report.html in headless Chromium at three widths: `python -m tests.pages [RUN]`.

A page must have something on it and must not be wider than its window. The pictures are kept in pages/. Without RUN a
training of a few seconds is run first.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.e2e import tiny

WIDTHS = (360, 800, 1440)
HEIGHT = 2400
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OUT = Path("pages")


def main() -> None:
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        sys.exit(f"no Chromium found: one of {', '.join(PROGRAMS)} must be on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else train(Path(folder))
        page = run / "report.html"
        if not page.is_file():
            sys.exit(f"{page} is missing: finetune report {run}")
        faults = [fault for width in WIDTHS for fault in look(program, page, width)]
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


def look(program: str, page: Path, width: int) -> list[str]:
    """Takes a picture; what is wrong with the page at this width."""
    OUT.mkdir(exist_ok=True)
    picture = OUT / f"{page.stem}-{width}.png"
    chromium(program, width, f"--screenshot={picture.resolve()}", page.resolve().as_uri())
    colors = len(Image.open(picture).convert("RGB").getcolors(1 << 24) or ())
    needed = content_width(program, page, width)
    print(f"{page.name} at {width} px: {colors} colors, content is {needed} px wide")
    faults = [] if colors > 16 else [f"{page.name} is empty at {width} px"]
    return faults + ([f"{page.name} needs {needed} px in a window of {width} px"] if needed > width else [])


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


def chromium(program: str, width: int, *arguments: str) -> str:
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={max(width, 500)},{HEIGHT}"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, timeout=120).stdout


if __name__ == "__main__":
    main()
