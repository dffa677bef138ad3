"""What the pages of this folder share: their templates, their script, and its hash."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import jinja2

from finetune.html_templates import open_templates

FOLDER = Path(__file__).parent


def environment() -> jinja2.Environment:
    """Templates of this folder; everything that is not marked safe is escaped, and a missing value is an error."""
    return open_templates(FOLDER)


def script() -> tuple[str, str]:
    """(page.js, its SHA-256 as a policy names it)."""
    code = (FOLDER / "page.js").read_text(encoding="utf-8")
    return code, base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
