"""Rows of conversations and texts within the limit on tokens: cut, left out, refused, or with nothing left to learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.tasks.text.chat import EMPTY
from finetune.tasks.text.inputs import cut_notice
from finetune.tasks.text.limits import limit_name

OPENING_TOKENS = 32  # of plain text, from which a sample is continued


def within_limit(
    ids: list[int],
    spans: Sequence[tuple[int, int]],
    reply: tuple[int, int],
    limit: int,
    on_long: str,
    find_replies: Callable[[], Sequence[tuple[int, int]]] | None = None,
) -> dict[str, Any]:
    """{"input_ids", "spans", "reply_start"} of a row's tokens, treated as on_long says (truncate, drop, split, error) where
    they are more than `limit`. Of a row that is dropped, they are empty.

    reply: start and end of the last one. "reference", its tokens, where it is not the end of "input_ids".
    find_replies: the tokens of each reply, where they are others than spans; asked where the last one is cut off.
    Raises: BadRow for a row without anything to learn within the limit, and for one that is too long where that is an error.
    """
    reply_start, reply_end = reply
    supervised = [(max(start, 1), end) for start, end in spans if end > max(start, 1)]
    if not supervised:
        raise BadRow(EMPTY)
    if len(ids) > limit:
        if on_long == "drop":
            return {"input_ids": [], "spans": [], "reply_start": 0}
        if on_long == "split":
            return {
                "input_ids": ids,
                "spans": [edge for span in supervised for edge in span],
                "reply_start": min(reply_start, limit - 1),
                NOTICES: [cut_notice(limit, what="conversation")],
            }
        if on_long == "error":
            raise BadRow(f"{len(ids)} tokens, more than {limit_name(limit)} {limit}", kind="too_long")
        if supervised[0][0] >= limit:
            raise BadRow(
                f"the prompt has {supervised[0][0]} tokens, longer than the limit: {limit_name(limit)} {limit}",
                kind="too_long",
            )
        return _cut(ids, supervised, reply, limit, find_replies or (lambda: supervised))
    example = {"input_ids": ids, "spans": [edge for span in supervised for edge in span], "reply_start": reply_start}
    return example if reply_end == len(ids) else {**example, "reference": ids[reply_start:reply_end]}


def _cut(
    ids: list[int],
    supervised: Sequence[tuple[int, int]],
    reply: tuple[int, int],
    limit: int,
    find_replies: Callable[[], Sequence[tuple[int, int]]],
) -> dict[str, Any]:
    """The beginning of a row that is too long. Its last reply is the last that begins within the limit.

    "reference": that reply in full, with which generated text is compared; the loss is that of the tokens within the limit.
    Where no reply begins there, the row is continued from its opening, as plain text is, and has no reference.
    """
    example: dict[str, Any] = {
        "input_ids": ids[:limit],
        "spans": [edge for start, end in supervised if start < limit for edge in (start, min(end, limit))],
        NOTICES: [cut_notice(limit, what="conversation")],
    }
    replies = [reply] if reply[0] < limit else [one for one in find_replies() if one[0] < limit]
    if not replies:
        return {**example, "reply_start": max(1, min(OPENING_TOKENS, limit // 2))}
    start, end = replies[-1]
    return {**example, "reply_start": start, "reference": ids[start:end]}


def expected_reply(example: Mapping[str, Any]) -> Sequence[int]:
    """The tokens of the last reply in full, also of a row that is cut; of plain text those within the limit."""
    reference = example.get("reference")
    return example["input_ids"][int(example["reply_start"]) :] if reference is None else reference


def long_reply_notice(example: Mapping[str, Any], new_tokens: int) -> str:
    """What to report of a row whose expected reply is longer than generated ones may be; "" for others."""
    if len(expected_reply(example)) <= new_tokens:
        return ""
    return (
        f"the expected reply has more than options.reply_length {new_tokens} tokens: what is generated for samples and "
        "metrics of texts ends there, and is compared with the whole reply"
    )


def prompt_example(ids: list[int], limit: int) -> dict[str, Any]:
    """A prompt to be replied to. Raises: BadRow if it is empty or leaves no room for a reply."""
    if not ids:
        raise BadRow("the prompt is empty", kind="empty")
    if len(ids) >= limit:
        raise BadRow(
            f"the prompt has {len(ids)} tokens, longer than the limit: {limit_name(limit)} {limit}", kind="too_long"
        )
    return {"input_ids": ids, "reply_start": len(ids)}
