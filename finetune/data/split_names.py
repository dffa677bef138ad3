"""Names of splits: the words that file and folder names of data sets contain, and the split that each stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# As `datasets` reads the names of files, but that eval is validation data here.
WORDS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
}
WORD = re.compile(r"[A-Za-z]+")


def split_of(name: str) -> str:
    """The split that a name is a word for: "val" -> "validation"; "" for any other name."""
    return WORDS.get(name.lower(), "")


def split_word(name: str) -> str:
    """The word for a split in the name of a file or folder: "train-00000-of-00001" -> "train"; "" if there is none.

    Words are divided by anything but letters. Of several, such as in "train-dev", all are returned, joined by "+".
    """
    return "+".join(dict.fromkeys(word for word in _words(name) if word in WORDS))


def _words(name: str) -> Iterable[str]:
    return (word.lower() for word in WORD.findall(name))
