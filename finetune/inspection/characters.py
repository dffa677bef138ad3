"""Unicode: which scripts texts are in, odd characters, and texts made safe to print in a terminal or a page."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from enum import IntFlag

import numpy as np

CODES = 0x110000


class Trait(IntFlag):
    """What characters a text has, one bit each."""

    CONTROL = 1  # C0 and C1 controls other than tab, line feed and carriage return
    REPLACEMENT = 2  # U+FFFD: a decoder has lost something here
    INVISIBLE = 4  # zero-width space, word joiner, byte order mark, soft hyphen
    BIDI = 8  # embeddings, overrides and isolates: text that reads in another order than it is stored
    PRIVATE = 16  # private use and noncharacters: no two programs agree on them
    SURROGATE = 32  # half of a pair: not a character
    LATIN = 64
    CYRILLIC = 128
    GREEK = 256
    BYTES = 512  # what bytes of UTF-8 look like when they are read as Latin-1 or Windows-1252


INVISIBLE = {0xAD, 0x200B, 0x2060, 0xFEFF, 0x180E}
BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
SHAPING = {
    0x200C,
    0x200D,
    0x200E,
    0x200F,
}  # Persian, Indic scripts and emoji need joiners; marks of direction are harmless
WINDOWS = {ord(bytes([byte]).decode("cp1252", "ignore") or "\0"): byte for byte in range(0x80, 0xA0)}
WINDOWS.pop(0, None)
_BYTES = re.compile("[\x80-\xff" + "".join(map(re.escape, map(chr, WINDOWS))) + "]{2,}")
_WORD = re.compile(r"[^\W\d_]{3,}")
# Cyrillic and Greek letters that look like Latin ones.
LOOKALIKES = set("аеорсухіјѕԁһкАВЕКМНОРСТУХІЈЅ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧονικρυχα")
_LATIN, _LOOKALIKE = "A-Za-z\u00c0-\u024f", "".join(sorted(LOOKALIKES))
_MIXED = re.compile(f"[{_LATIN}][{_LOOKALIKE}]|[{_LOOKALIKE}][{_LATIN}]")


def traits_of(code: int) -> int:
    """The bits of one character."""
    category = unicodedata.category(chr(code))
    bits = 0
    if category == "Cc" and code not in (9, 10, 13):
        bits |= Trait.CONTROL
    if code == 0xFFFD:
        bits |= Trait.REPLACEMENT
    if code in INVISIBLE:
        bits |= Trait.INVISIBLE
    if code in BIDI:
        bits |= Trait.BIDI
    if category == "Co" or (code & 0xFFFE) == 0xFFFE or 0xFDD0 <= code < 0xFDF0:
        bits |= Trait.PRIVATE
    if category == "Cs":
        bits |= Trait.SURROGATE
    if category[0] == "L":
        script = script_of(code)
        bits |= {"Latin": Trait.LATIN, "Cyrillic": Trait.CYRILLIC, "Greek": Trait.GREEK}.get(script, 0)
    if 0x80 <= code < 0x100 or code in WINDOWS:
        bits |= Trait.BYTES
    return int(bits)


def script_of(code: int) -> str:
    """The script of a letter ("Latin", "Han"), or what else a character is ("digits", "punctuation", "symbols")."""
    character = chr(code)
    category = unicodedata.category(character)
    if category[0] in "LM":
        name = unicodedata.name(character, "")
        first = name.partition(" ")[0]
        if first in ("CJK", "KANGXI"):
            return "Han"
        if first in ("COMBINING", "VARIATION", "MODIFIER", "MICRO", "FEMININE", "MASCULINE", "KELVIN", "ANGSTROM"):
            return "marks"
        if first in ("FULLWIDTH", "HALFWIDTH", "MATHEMATICAL"):
            return "Latin" if "LATIN" in name or first == "MATHEMATICAL" else name.split(" ")[1].capitalize()
        return first.capitalize() or "unknown"
    kinds = {"N": "digits", "P": "punctuation", "S": "symbols", "Z": "spaces"}
    if character in "\t\n\r":
        return "spaces"
    return kinds.get(category[0], "control and format")


class CharacterCounter:
    """Counts characters over blocks of texts, and says which traits each text has."""

    def __init__(self) -> None:
        self.counts = np.zeros(CODES, np.int64)
        self._traits = np.zeros(CODES, np.uint16)
        self._known = np.zeros(CODES, bool)

    def add(self, texts: Sequence[str]) -> np.ndarray:
        """Count the characters of `texts`; the traits of each, uint16 [texts]."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
        found = np.zeros(len(texts), np.uint16)
        if not len(codes):
            return found
        counts = np.bincount(codes, minlength=CODES)
        for code in np.flatnonzero((counts > 0) & ~self._known).tolist():
            self._traits[code], self._known[code] = traits_of(code), True
        self.counts += counts
        filled = np.flatnonzero(lengths)
        starts = (np.cumsum(lengths) - lengths)[filled]
        found[filled] = np.bitwise_or.reduceat(self._traits[codes], starts)
        return found

    def scripts(self) -> dict[str, int]:
        """Characters of each script or kind, the most frequent first."""
        totals: Counter[str] = Counter()
        for code in np.flatnonzero(self.counts).tolist():
            totals[script_of(code)] += int(self.counts[code])
        return dict(totals.most_common())


def find_mojibake(text: str) -> str:
    """A piece of text that is UTF-8 read as Windows-1252 or Latin-1, with what it should be: "Ã© for é"; "" if none."""
    for match in _BYTES.finditer(text):
        raw = bytes(WINDOWS.get(ord(character), ord(character) & 0xFF) for character in match[0])
        try:
            fixed = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        return f"{match[0]} for {fixed}"
    return ""


def find_mixed_word(text: str) -> str:
    """A word of Latin letters and Cyrillic or Greek ones that look like Latin ones, with the rarer named; "" if none.

    Other letters may stand beside Latin ones on purpose, as in formulas.
    """
    if not _MIXED.search(text):
        return ""
    for word in _WORD.findall(text):
        scripts = Counter(script_of(ord(letter)) for letter in word)
        foreign = [letter for letter in word if script_of(ord(letter)) in ("Cyrillic", "Greek")]
        if not scripts.get("Latin") or not foreign or not set(foreign) <= LOOKALIKES:
            continue
        rarer = min(("Latin", script_of(ord(foreign[0]))), key=lambda name: scripts[name])
        odd = "".join(dict.fromkeys(letter for letter in word if script_of(ord(letter)) == rarer))
        return f"{word}, where {odd} is {rarer}"
    return ""


def find_characters(text: str, trait: Trait) -> str:
    """The characters of a text that have a trait: "U+200B ZERO WIDTH SPACE at 17"."""
    found = [(place, ord(one)) for place, one in enumerate(text) if traits_of(ord(one)) & trait]
    names = [f"{describe_character(code)} at {place}" for place, code in found[:3]]
    return ", ".join(names) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def describe_character(code: int) -> str:
    """0x200B -> "U+200B ZERO WIDTH SPACE"."""
    name = unicodedata.name(chr(code), "")
    return f"U+{code:04X} {name}".rstrip()


def visible(text: str, *, line_feed: str = "⏎", tab: str = "⇥") -> str:
    r"""Text that is safe to print: characters that a terminal or a browser acts on become escapes such as \x1b and \u202e.

    line_feed, tab: what stands for them.
    """
    return "".join(
        one
        if one.isprintable()
        else line_feed
        if one == "\n"
        else tab
        if one == "\t"
        else " "
        if unicodedata.category(one) == "Zs"
        else one
        if ord(one) in SHAPING
        else _escape(ord(one))
        for one in text
    )


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
