"""Text that is safe to print: control characters are shown as what they are, and secrets are hidden."""

from __future__ import annotations

import re
from typing import Any

# Control characters but line feeds and tabs; what turns the direction of text; separators that terminals take for line
# feeds; and halves of characters, which cannot be printed.
_CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
# What our own lines and rich's live line send to a terminal: colors, the cursor up or to the left, erasing, hiding it.
_OWN_CODES = r"\x1b\[[0-9;]{0,20}[mAGK]|\x1b\[\?25[lh]|\r"


def is_plain(text: str) -> bool:
    """Whether there is surely no control character: quick, and without a pattern that the start-up would compile."""
    return text.replace("\n", "").replace("\t", "").isprintable()


def printable(text: Any) -> str:
    r"""The text with control characters as JSON writes them: "\u001b[2J" in place of what clears the screen."""
    text = str(text)
    return text if is_plain(text) else re.sub(_CONTROL, lambda found: f"\\u{ord(found[0]):04x}", text)


def guard(text: str, terminal: bool) -> str:
    """The text without control sequences but our own, and those for a terminal alone."""
    if not terminal:  # progress bars of libraries begin with a carriage return
        return "\r".join(map(printable, text.split("\r")))
    kept = re.findall(_OWN_CODES, text)
    parts = map(printable, re.split(_OWN_CODES, text))
    return "".join(part + code for part, code in zip(parts, [*kept, ""], strict=True))


def mask_secrets(text: str) -> str:
    """The text without secrets. Imported late: their patterns take a tenth of the start-up."""
    from finetune.recipe.secrets import mask_text

    return mask_text(text)
