"""Pairs of column names by which what is asked and what is replied are known, and the data sets that use them.

A pair is taken as a whole: `response` beside `prompt` is its completion, beside `instruction` its output. The first pair of
which the data has both columns is taken. docs/your-data.md has the same table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

RolePair = tuple[str, str]
REPLIES: RolePair = ("chosen", "rejected")  # besides a prompt; the other pairs exclude each other

PAIRS: Mapping[RolePair, tuple[tuple[str, str, str], ...]] = {
    ("instruction", "output"): (
        ("instruction", "output", "Alpaca, Code Alpaca, Open-Platypus"),
        ("instruction", "response", "Dolly (with `context`)"),
        ("instruction", "answer", ""),
        ("instruction", "completion", ""),
        ("question", "answer", "GSM8K"),
        ("question", "response", "OpenOrca (with `system_prompt`)"),
        ("question", "output", ""),
        ("query", "response", "MetaMathQA"),
        ("query", "answer", ""),
        ("query", "answers", "xLAM (with `tools`; the answers are tool calls)"),
        ("query", "output", ""),
        ("problem", "solution", "MATH, NuminaMath"),
        ("problem", "answer", ""),
    ),
    ("prompt", "completion"): (
        ("prompt", "completion", "TRL; OpenAI's first format"),
        ("prompt", "response", "verl, OpenRLHF"),
        ("prompt", "answer", ""),
        ("prompt", "output", ""),
        ("prompt", "reply", ""),
        ("inputs", "targets", "FLAN, xP3"),
        ("input", "output", ""),
        ("user", "assistant", ""),
    ),
    ("source", "target"): (
        ("source", "target", ""),
        ("document", "summary", "XSum"),
        ("article", "highlights", "CNN/DailyMail"),
        ("dialogue", "summary", "SAMSum"),
        ("text", "summary", "BillSum"),
        ("inputs", "targets", "FLAN"),
        ("input", "output", ""),
        ("input", "target", ""),
        ("prompt", "completion", ""),
        ("prompt", "response", ""),
        ("question", "answer", ""),
    ),
    REPLIES: (
        ("chosen", "rejected", "TRL, UltraFeedback, HH-RLHF"),
        ("chosen_response", "rejected_response", ""),
        ("preferred_output", "non_preferred_output", "OpenAI (with `input`)"),
        ("response_j", "response_k", "stack-exchange-paired (with `question`)"),
    ),
}


def find_pairs(roles: Collection[str], explicit: Mapping[str, str], available: Collection[str]) -> dict[str, str]:
    """{role: column} of the pairs that the data has, besides what the recipe maps; {} where it has none.

    roles: of the task. explicit: role -> column, as the recipe maps them. available: the columns of the data.

    >>> find_pairs(["instruction", "output", "prompt", "completion"], {}, ["prompt", "response"])
    {'prompt': 'prompt', 'completion': 'response'}
    """
    known = [pair for pair in PAIRS if set(pair) <= set(roles)]
    found = _find([pair for pair in known if pair != REPLIES], explicit, available)
    if REPLIES in known:
        found.update(_find([REPLIES], explicit, available))
    return found


def _find(
    alternatives: Collection[RolePair], explicit: Mapping[str, str], available: Collection[str]
) -> dict[str, str]:
    """The first complete pair of some that exclude each other."""
    free = [column for column in available if column not in explicit.values()]
    for pair in alternatives:
        if all(role in explicit for role in pair):
            return {}
    for pair in alternatives:
        mapped = [role for role in pair if role in explicit]
        if mapped:  # the recipe says one half: the other is looked for among its names
            side = 1 - pair.index(mapped[0])
            names = dict.fromkeys([pair[side], *(known[side] for known in PAIRS[pair])])
            column = next((name for name in names if name in free), None)
            return {pair[side]: column} if column is not None else {}
    own = {role: role for pair in alternatives if set(pair) <= set(free) for role in pair}
    if own:
        return own
    for pair in alternatives:
        for asked, replied, _ in PAIRS[pair]:
            if asked in free and replied in free:
                return {pair[0]: asked, pair[1]: replied}
    return {}
