"""Texts that are longer than the model takes, as examples of their blocks.

A row is encoded without a limit, and cut only if it is longer than the model's: all others are the same examples as ever.
A block holds the special tokens of the whole, and a span of the tokens between them:

    [CLS] a b c d e f [SEP], --block 5 --stride 1  ->  [CLS] a b c [SEP], [CLS] c d e [SEP], [CLS] d e f [SEP]

Of a pair of texts the longer one is cut, and the other is part of every block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Row
from finetune.errors import UserError
from finetune.inference.answering import PIECE, Outcome, Part
from finetune.inference.pieces.merging import Answers, merge_class_scores, merge_numbers, merge_outcomes
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.spans import check_count, count_spans, span_shares, span_starts
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer
from finetune.tasks.class_outputs import name_of
from finetune.tasks.reward_model.data import pair_encoder
from finetune.tasks.task import Encoded, Task
from finetune.tasks.text.inputs import encode_each, text_and_pair
from finetune.tasks.text.limits import limit_name, limit_of

UNLIMITED = 1 << 40  # tokens
PER_TOKEN = ("input_ids", "token_type_ids")
REJECTED = "rejected_"  # begins the keys of the second sequence of a pair of replies, and the value of its reward
HEAD = (
    4  # head_tail: one token in 4 is of the head, as the 128 of 510 of Sun et al. 2019, arXiv 1905.05583, section 5.3.1
)
CUT = "the text is longer than the model takes; it is answered in blocks"
SHORTENED = "the text is longer than the model takes; its middle is left out (head and tail)"

Tokens = dict[str, list[int]]


@dataclass(frozen=True)
class Block:
    """A part of a sequence, with its special tokens. span: its first token and the one behind its last, of those that are
    cut. share: tokens that it stands for; 0 for one that only fills up a pair. left_out: tokens that no block has.
    """

    tokens: Tokens
    span: tuple[int, int]
    share: float
    left_out: int = 0


class TextBlocks:
    """See RowSplitter. For classes and numbers of a whole text, or of a pair of texts."""

    def __init__(self, task: Task, artifacts: TaskArtifacts, options: PieceOptions) -> None:
        """Raises: UserError for blocks that are longer than the model takes."""
        assert options.block is not None and options.stride is not None
        self.task, self.artifacts = task, artifacts
        self.size, self.stride, self.how = options.block, options.stride, options.merge or "mean"
        self.most = options.most_pieces
        self.limit = limit_of(artifacts)
        if self.size > self.limit:
            raise UserError(
                f"blocks of {self.size} tokens, but the model takes {self.limit} at most ({limit_name(self.limit)})",
                where="--block",
                remedy=f"Set --block to {self.limit} or less.",
            )
        if not artifacts.processor.is_fast:
            raise UserError(
                "the model's tokenizer has no fast version, so where its texts can be cut is not known",
                where="--block",
                remedy="Leave --block out: long texts are cut at their end, as in training.",
            )
        self.unlimited = replace(artifacts, settings={**artifacts.settings, "max_length": UNLIMITED})
        self.frame = Frame.of(artifacts.processor)

    def split(self, rows: Sequence[Row], *, with_targets: bool) -> list[list[dict[str, Any]] | BadRow]:
        """The blocks of each row; the whole row where the model takes it."""
        encoded = self.task.encode(self.unlimited, rows, with_targets=with_targets)
        pairs = list(zip(rows, encoded, strict=True))
        return encode_each(pairs, lambda pair: self._split(pair[0], pair[1], with_targets))  # type: ignore[arg-type, index]

    def _split(self, row: Row, example: Encoded, with_targets: bool) -> list[dict[str, Any]]:
        if isinstance(example, BadRow):
            raise example
        starts = [start for start in ("", REJECTED) if f"{start}input_ids" in example]
        if all(len(example[f"{start}input_ids"]) <= self.limit for start in starts):
            return [example]
        return self._cut(row, example, with_targets, starts)

    def _cut(
        self, row: Row, example: dict[str, Any], with_targets: bool, starts: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The blocks of an example that is too long. starts: of the keys of its sequences."""
        texts = self._texts(row, with_targets)
        sides = []
        for index, start in enumerate(starts):
            tokens = {key: example[start + key] for key in PER_TOKEN if start + key in example}
            sides.append(self._blocks(tokens, texts[index] if texts else None))
        count, pieces = max(map(len, sides)), []
        rest = {key: value for key, value in example.items() if key != NOTICES}
        notice = SHORTENED if any(block.left_out for side in sides for block in side) else CUT
        example = {**example, NOTICES: [*example.get(NOTICES, ()), notice]}
        for index in range(count):
            blocks = [side[index] if index < len(side) else replace(side[-1], share=0.0) for side in sides]
            keys = {
                f"{start}{key}": value
                for start, block in zip(starts, blocks, strict=True)
                for key, value in block.tokens.items()
            }
            pieces.append({**(rest if index else example), **keys, PIECE: _piece(index, count, blocks)})
        return pieces

    def _texts(self, row: Row, with_targets: bool) -> list[list[str]] | None:
        """The texts of each sequence of a row; None for conversations, which are one sequence of tokens."""
        if "as_pair" not in self.artifacts.settings:  # one text or two, not a prompt with its replies
            return [text_and_pair(row)]
        if not self.artifacts.settings["as_pair"]:
            return None
        return [reply.texts for reply in pair_encoder(self.artifacts).read(row, with_targets)]

    def _blocks(self, tokens: Tokens, texts: Sequence[str] | None) -> list[Block]:
        """The blocks of one sequence; one block where the model takes it. Raises: BadRow if nothing of it can be cut."""
        ids = tokens["input_ids"]
        start, end = self._cuttable(ids, texts)
        if len(ids) <= self.limit:
            return [Block(tokens, (0, end - start), end - start)]
        room, length = self.size - (len(ids) - (end - start)), end - start
        if room <= self.stride:
            fixed = "the other text and the special tokens take" if texts and len(texts) > 1 else "special tokens take"
            raise BadRow(
                f"{len(ids)} tokens, more than {limit_name(self.limit)} {self.limit}, and no blocks can be made: {fixed} "
                f"{len(ids) - length} of the {self.size} tokens of --block, and --stride is {self.stride}",
                kind="too_long",
            )
        if self.how == "head_tail":
            return [self._head_and_tail(tokens, start, end, room)]
        check_count(count_spans(length, room, self.stride), self.most)
        firsts = span_starts(length, room, self.stride)
        shares = span_shares(firsts, room, length)
        return [
            Block(cut_tokens(tokens, start, end, (first, first + room)), (first, first + room), share)
            for first, share in zip(firsts, shares, strict=True)
        ]

    def _head_and_tail(self, tokens: Tokens, start: int, end: int, room: int) -> Block:
        head = room // HEAD
        kept = {
            key: [*values[: start + head], *values[end - (room - head) : end], *values[end:]]
            for key, values in tokens.items()
        }
        return Block(kept, (0, end - start), end - start, left_out=end - start - room)

    def _cuttable(self, ids: Sequence[int], texts: Sequence[str] | None) -> tuple[int, int]:
        """The tokens that may be cut: those of the only text, of the longer one of two, of a whole conversation."""
        if texts is None:
            return conversation_span(self.artifacts.processor, ids)
        if len(texts) == 1:
            return self.frame.before, len(ids) - self.frame.after
        before, between, after = self.frame.pair
        alone = self.artifacts.processor(texts[0], verbose=False)["input_ids"]
        first = (before, before + len(alone) - self.frame.before - self.frame.after)
        second = (first[1] + between, len(ids) - after)
        return first if first[1] - first[0] >= second[1] - second[0] else second

    def load(self, examples: Sequence[dict[str, Any]]) -> list[Encoded]:
        """Blocks are examples already."""
        return list(examples)

    def merge(self, row: int, parts: Sequence[Part]) -> Outcome:
        """Scores or numbers of the blocks as one."""
        return merge_outcomes(parts, self._merge)

    def _merge(self, answers: Answers) -> Answer:
        first = answers[0][1]
        if len(answers) == 1:
            return first
        if "scores" in first.values:
            several = getattr(self.artifacts.options, "problem", "") == "multi_label"
            scores, shares = [answer.values["scores"] for _, answer in answers], _shares(answers, 0)
            prediction, merged = merge_class_scores(scores, shares, self.how, several=several)
            shown = {**first.shown, "predicted": name_of(prediction, self.artifacts.labels)}
            return Answer(first.id, {**first.values, "prediction": prediction, "scores": merged}, shown)
        values = {
            name: merge_numbers(
                [answer.values[name] for _, answer in answers],
                _shares(answers, 1 if name.startswith(REJECTED) else 0),
                self.how,
            )
            for name in first.values
        }
        return Answer(first.id, values, first.shown)


@dataclass(frozen=True)
class Frame:
    """Special tokens around a text: how many before and after it; pair: before, between and after two texts."""

    before: int
    after: int
    pair: tuple[int, int, int]

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """Counted in an encoded letter, and in a pair of them."""
        single = tokenizer("a", verbose=False).sequence_ids(0)
        both = tokenizer("a", "a", verbose=False).sequence_ids(0)
        first, second = both.index(0), both.index(1)
        between = second - first - both.count(0)
        return cls(
            single.index(0),
            len(single) - single.index(0) - single.count(0),
            (first, between, len(both) - second - both.count(1)),
        )


def conversation_span(tokenizer: Any, ids: Sequence[int]) -> tuple[int, int]:
    """Tokens of a conversation between the one that begins every sequence and the special ones at its end."""
    start, end = int(bool(ids) and ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)), len(ids)
    special = set(tokenizer.all_special_ids)
    while end > start and ids[end - 1] in special:
        end -= 1
    return start, end


def cut_tokens(
    tokens: Mapping[str, Sequence[Any]], start: int, end: int, span: tuple[int, int]
) -> dict[str, list[Any]]:
    """The part `span` of the values from start to end, with those before and after. Values: one for each token."""
    return {
        key: [*values[:start], *values[start + span[0] : min(start + span[1], end)], *values[end:]]
        for key, values in tokens.items()
    }


def _piece(index: int, count: int, blocks: Sequence[Block]) -> dict[str, Any]:
    spans = " and ".join(f"tokens {block.span[0] + 1} to {block.span[1]}" for block in blocks if block.share)
    left_out = sum(block.left_out for block in blocks)
    name = (
        f"head and tail, {left_out} tokens between them left out"
        if left_out
        else f"block {index + 1} of {count} ({spans})"
    )
    shares = [block.share for block in blocks]
    return {"index": index, "count": count, "name": name, "shares": shares, "left_out": left_out}


def _shares(answers: Answers, side: int) -> list[float]:
    return [piece["shares"][side] for piece, _ in answers]
