"""A plain text as words, for models that tag words: where each begins and ends.

Training data comes as lists of words, in which punctuation stands alone. The same is done here to a text: it is cut at white
space, punctuation at both ends of a piece is cut off (an @ or # before a name stays, as in the corpora of messages), and
every ideograph is a word, as it is a token.
"""

from __future__ import annotations

import re
import unicodedata

_PIECE = re.compile(r"\S+")
_IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]")
_BEFORE_NAMES = "@#"


def split_words(text: str) -> list[tuple[int, int]]:
    """(begin, end) of each word, ascending and without overlap, in characters.

    >>> [text[a:b] for text in ["(Ann Lee's, in U.S.)"] for a, b in split_words(text)]
    ['(', 'Ann', "Lee's", ',', 'in', 'U.S', '.', ')']
    """
    spans: list[tuple[int, int]] = []
    for piece in _PIECE.finditer(text):
        start, end = piece.span()
        while start < end and _is_mark(text[start]) and not _names(text, start, end):
            spans.append((start, start + 1))
            start += 1
        last = end
        while start < last and _is_mark(text[last - 1]):
            last -= 1
        spans += _around_ideographs(text, start, last)
        spans += [(index, index + 1) for index in range(last, end)]
    return spans


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _names(text: str, start: int, end: int) -> bool:
    return text[start] in _BEFORE_NAMES and start + 1 < end and text[start + 1].isalnum()


def _around_ideographs(text: str, start: int, end: int) -> list[tuple[int, int]]:
    spans = []
    for found in _IDEOGRAPH.finditer(text, start, end):
        if found.start() > start:
            spans.append((start, found.start()))
        spans.append(found.span())
        start = found.end()
    return [*spans, (start, end)] if end > start else spans
