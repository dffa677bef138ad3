"""Templates of HTML pages, as every page of the package opens them."""

from __future__ import annotations

from pathlib import Path

import jinja2


def open_templates(folder: Path) -> jinja2.Environment:
    """The templates of a folder. All that is not marked safe is escaped; a missing value is an error (UndefinedError)."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
