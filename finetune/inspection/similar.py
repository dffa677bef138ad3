"""Near duplicates: MinHash signatures over pairs of neighboring words, and datasketch's index of them.

Broder, "On the resemblance and containment of documents" (1997). Signatures are computed for whole blocks of texts with
the permutations of datasketch's MinHash, so they are equal to what its `update_batch` gives, at a tenth of the time.
Candidates of the index are verified: only pairs whose sets of word pairs overlap by THRESHOLD are reported.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from datasketch import MinHash, MinHashLSH

THRESHOLD = 0.8  # Jaccard similarity of the sets of word pairs
BANDS, BAND_ROWS = 12, 5  # a pair of similarity 0.8 is a candidate with probability 0.99, one of 0.5 with 0.3
PERMUTATIONS = BANDS * BAND_ROWS
SCHEME = "affine32"
MIN_WORDS = 5  # shorter texts resemble each other by chance
MAX_CANDIDATES = 50  # verified per text
SHINGLES = 1 << 17  # hashed at once

Part = tuple[str, str]  # who speaks, "" if nobody is named; a text
Similar = tuple[int, str, int, float]  # row, split of the other row, other row, similarity

# Scripts without blanks between words: each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


class Signatures:
    """Signatures of the texts of a split. chosen: bool [rows], which texts take part."""

    def __init__(self, chosen: np.ndarray) -> None:
        self.chosen = chosen
        self.rows: list[int] = []
        self.shingles: list[np.ndarray] = []
        self._parts: list[np.ndarray] = []
        self._empty = MinHash(PERMUTATIONS, scheme=SCHEME)

    def add(self, start: int, texts: Sequence[Sequence[Part]]) -> None:
        """Add texts whose rows begin at `start`; those that are not chosen, or too short, are passed over."""
        first = len(self.shingles)
        for row, parts in enumerate(texts, start):
            if self.chosen[row] and (shingles := word_pairs(parts)) is not None:
                self.rows.append(row)
                self.shingles.append(shingles)
        block: list[np.ndarray] = []
        size = 0
        for one in self.shingles[first:]:
            block.append(one)
            size += len(one)
            if size > SHINGLES:
                self._parts.append(self._hash(block))
                block, size = [], 0
        if block:
            self._parts.append(self._hash(block))

    @property
    def values(self) -> np.ndarray:
        """uint32 [texts, permutations]."""
        return np.concatenate(self._parts) if self._parts else np.zeros((0, PERMUTATIONS), np.uint32)

    def _hash(self, block: Sequence[np.ndarray]) -> np.ndarray:
        mixed = _mix(np.concatenate(block))
        lengths = np.fromiter(map(len, block), np.int64, len(block))
        starts = np.cumsum(lengths) - lengths
        factors, shifts = self._empty.permutations
        found = np.empty((len(block), PERMUTATIONS), np.uint32)
        for index, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
            found[:, index] = np.minimum.reduceat(mixed * factor + shift, starts)
        return found

    def to_minhash(self, values: np.ndarray) -> MinHash:
        """datasketch's object for the values of one text."""
        return MinHash(hashvalues=values, permutations=self._empty.permutations, scheme=SCHEME)


def word_pairs(parts: Sequence[Part]) -> np.ndarray | None:
    """Hashes of the pairs of neighboring words of a text, distinct, uint32; None for a text of fewer than MIN_WORDS words.

    The same word of another speaker is another word: a line of the user is not like one of the assistant.
    """
    hashed = [
        zlib.crc32(word.encode("utf-8", "surrogatepass"), zlib.crc32(speaker.encode("utf-8", "surrogatepass")))
        for speaker, text in parts
        for word in _WORDS.findall(text.casefold())
    ]
    if len(hashed) < MIN_WORDS:
        return None
    hashes = np.array(hashed, np.uint32)
    return np.unique(hashes[:-1] * np.uint32(0x9E3779B1) + (hashes[1:] ^ (hashes[1:] >> np.uint32(15))))


def _mix(values: np.ndarray) -> np.ndarray:
    """MurmurHash3's finalizer for 32 bits, with which datasketch prepares hashes for its permutations."""
    values = values ^ (values >> np.uint32(16))
    values = values * np.uint32(0x85EBCA6B)
    values = values ^ (values >> np.uint32(13))
    values = values * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of two sets, each distinct and sorted."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


class SimilarTexts:
    """An index of the texts of a split, with which others are compared.

    A text that has more than MAX_CANDIDATES candidates is not inserted, so that texts made from one template do not cost the
    square of their number. crowded: how many were not.
    """

    def __init__(self) -> None:
        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, BAND_ROWS))
        self._name, self.crowded = "", 0
        self._signatures: Signatures | None = None
        self._values = np.zeros((0, PERMUTATIONS), np.uint32)

    def insert(self, name: str, signatures: Signatures, *, skip: np.ndarray, compare: bool) -> list[Similar]:
        """Insert the texts of the split `name`, without the rows of `skip`, bool [rows].

        compare: give those that resemble one inserted before, with the most similar one.
        """
        self._name, self._signatures, self._values = name, signatures, signatures.values
        found = []
        for place, row in enumerate(signatures.rows):
            if skip[row]:
                continue
            minhash = signatures.to_minhash(self._values[place])
            candidates = self._index.query(minhash)
            if compare:
                best = self._closest(signatures.shingles[place], self._values[place], candidates)
                found += [(row, *best)] if best is not None else []
            if len(candidates) > MAX_CANDIDATES:
                self.crowded += 1
            else:
                self._index.insert(place, minhash, check_duplication=False)
        return found

    def compare(self, signatures: Signatures, *, skip: np.ndarray) -> list[Similar]:
        """The texts of another split that resemble one of the index."""
        values, found = signatures.values, []
        for place, row in enumerate(signatures.rows):
            if skip[row]:
                continue
            candidates = self._index.query(signatures.to_minhash(values[place]))
            best = self._closest(signatures.shingles[place], values[place], candidates)
            found += [(row, *best)] if best is not None else []
        return found

    def _closest(
        self, shingles: np.ndarray, values: np.ndarray, candidates: Sequence[int]
    ) -> tuple[str, int, float] | None:
        if not candidates or self._signatures is None:
            return None
        places = np.sort(np.asarray(candidates, np.int64))
        agreement = (self._values[places] == values).sum(axis=1)
        ranked = places[np.argsort(-agreement, kind="stable")]
        best: tuple[str, int, float] | None = None
        for place in ranked[:MAX_CANDIDATES].tolist():
            share = similarity(shingles, self._signatures.shingles[place])
            if share >= THRESHOLD and (best is None or share > best[2]):
                best = (self._name, self._signatures.rows[place], share)
        return best
