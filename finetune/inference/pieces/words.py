"""Texts whose words are tagged, as blocks: each word is answered once, by the block that shows most of what is around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.data.bad_rows import BadRow
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Row
from finetune.inference.answering import PIECE, Outcome, Part
from finetune.inference.pieces.merging import Answers, join_lists, merge_outcomes
from finetune.inference.pieces.spans import check_count, count_spans, span_starts
from finetune.inference.pieces.texts import CUT, PER_TOKEN, TextBlocks, cut_tokens
from finetune.models.losses import IGNORE
from finetune.tasks.batch import Answer
from finetune.tasks.records import ASKED


class WordBlocks(TextBlocks):
    """Blocks of a list of words. A word is in the example of one block alone, so answers are put one after the other."""

    def _cut(
        self, row: Row, example: dict[str, Any], with_targets: bool, starts: Sequence[str]
    ) -> list[dict[str, Any]]:
        ids = example["input_ids"]
        start, end = self.frame.before, len(ids) - self.frame.after
        room, length = self.size - (len(ids) - (end - start)), end - start
        if room <= self.stride:
            raise BadRow(
                f"special tokens take {len(ids) - length} of the {self.size} tokens of --block, and --stride is {self.stride}",
                kind="too_long",
            )
        firsts = [first - start if first >= 0 else -1 for first in example["firsts"]]
        check_count(count_spans(length, room, self.stride), self.most)
        begins = span_starts(length, room, self.stride)
        owners = choose_blocks(firsts, length, begins, room)
        used = sorted(set(owners.tolist()))  # a block may lie within one long word
        pieces = []
        for index, number in enumerate(used):
            words = np.flatnonzero(owners == number)
            span = (begins[number], begins[number] + room)
            piece = self._piece(example, span, start, end, (int(words[0]), int(words[-1]) + 1), is_first=index == 0)
            name = f"block {index + 1} of {len(used)} (words {words[0] + 1} to {words[-1] + 1})"
            if index == 0:
                piece[NOTICES] = [*example.get(NOTICES, ()), CUT]
            pieces.append({**piece, PIECE: {"index": index, "count": len(used), "name": name, "left_out": 0}})
        return pieces

    def _piece(
        self,
        example: Mapping[str, Any],
        span: tuple[int, int],
        start: int,
        end: int,
        words: tuple[int, int],
        *,
        is_first: bool,
    ) -> dict[str, Any]:
        """The example of one block and its words. Tokens of other words have no label: they are scored elsewhere."""
        chosen = slice(*words)
        per_token = {key: example[key] for key in PER_TOKEN if key in example}
        if "labels" in example:
            per_token["labels"] = _only_labels(example, words)
        piece: dict[str, Any] = cut_tokens(per_token, start, end, span)
        piece["firsts"] = [first - span[0] if first >= 0 else -1 for first in example["firsts"][chosen]]
        if "tags" in example:
            piece["tags"] = example["tags"][chosen]
        if ASKED in example:
            asked = example[ASKED]
            piece[ASKED] = {key: value[chosen] for key, value in asked.items() if isinstance(value, list)}
            if is_first:
                piece[ASKED] |= {key: value for key, value in asked.items() if not isinstance(value, list)}
        return piece

    def merge(self, row: int, parts: Sequence[Part]) -> Outcome:
        """Tags of the blocks, one after the other."""
        return merge_outcomes(parts, self._merge, joined=True)

    def _merge(self, answers: Answers) -> Answer:
        first = answers[0][1]
        shown = " ".join(str(answer.shown["predicted"]) for _, answer in answers if "predicted" in answer.shown)
        values = join_lists([answer.values for _, answer in answers])
        return Answer(first.id, values, {**first.shown, "predicted": shown})


def choose_blocks(firsts: Sequence[int], length: int, begins: Sequence[int], room: int) -> np.ndarray:
    """The block of each word: int64 [words]. Of the blocks that hold its first token, the one with the most tokens on the
    word's shorter side; the earlier one of equals. A word without a token (-1) goes with the one before it.

    firsts: the first token of each word, ascending. length: tokens. begins: first token of each block, of `room` tokens.
    """
    known = np.flatnonzero(np.asarray(firsts) >= 0)
    first = np.asarray(firsts, np.int64)[known]
    behind = np.append(first[1:], length)
    starts = np.asarray(begins, np.int64)
    newest = np.searchsorted(starts, first, side="right") - 1  # the last block that begins at the word or before it
    best, most = newest.copy(), np.minimum(first - starts[newest], starts[newest] + room - behind)
    for back in range(1, len(starts)):
        block = np.maximum(newest - back, 0)
        holds = (newest - back >= 0) & (first < starts[block] + room)
        if not holds.any():
            break
        context = np.minimum(first - starts[block], starts[block] + room - behind)
        better = holds & (context >= most)
        best, most = np.where(better, block, best), np.where(better, context, most)
    owners = np.zeros(len(firsts), np.int64)
    owners[known] = best
    for word in np.flatnonzero(np.asarray(firsts) < 0):
        owners[word] = owners[word - 1] if word else best[0]
    return owners


def _only_labels(example: Mapping[str, Any], words: tuple[int, int]) -> list[int]:
    """The labels of the tokens of some words; -100 elsewhere."""
    firsts = [first for first in example["firsts"][words[0] : words[1]] if first >= 0]
    later = [first for first in example["firsts"][words[1] :] if first >= 0]
    labels, low, high = example["labels"], firsts[0], later[0] if later else len(example["labels"])
    return [label if low <= index < high else IGNORE for index, label in enumerate(labels)]
