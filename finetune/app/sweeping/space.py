"""The space of a sweep: what `--grid KEY=...` says, and the trials that come of it. Pure: the recipe is checked elsewhere."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune.errors import UserError
from finetune.recipe.faults import nearest
from finetune.recipe.yaml import parse_value

MAX_TRIALS = 1000
MAX_VALUES = 10_000  # of one key
DRAWS_PER_TRIAL = 50  # until a space is reported to have too few different points
DIGITS = 4  # significant ones of a drawn number
RANGES = ("uniform", "loguniform", "integers")
_RANGE = re.compile(r"\s*([A-Za-z_]\w*)\s*\((.*)\)\s*", re.DOTALL)
_BRACKETS = {"[": "]", "{": "}", "(": ")"}

Values = Mapping[str, str]
"""Recipe key -> its value in one trial, as `--set` takes it."""


@dataclass(frozen=True)
class Choices:
    """Values of one key, as YAML."""

    key: str
    values: tuple[str, ...]

    def describe(self) -> str:
        return ",".join(self.values)

    def draw(self, source: random.Random) -> str:
        return self.values[source.randrange(len(self.values))]


@dataclass(frozen=True)
class Range:
    """A range of numbers of one key. kind: one of RANGES; `integers` includes both ends."""

    key: str
    kind: str
    low: float
    high: float

    def describe(self) -> str:
        return f"{self.kind}({self.low!r}, {self.high!r})"

    def draw(self, source: random.Random) -> str:
        if self.kind == "integers":
            return str(int(self.low) + source.randrange(int(self.high) - int(self.low) + 1))
        if self.kind == "uniform":
            value = self.low + (self.high - self.low) * source.random()
        else:
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + (high - low) * source.random())
        return repr(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))


Dimension = Choices | Range


def parse_space(texts: Sequence[str]) -> tuple[Dimension, ...]:
    """["training.learning_rate=1e-5,3e-5", "training.warmup=uniform(0, 0.2)"] as dimensions, in order.

    Raises: UserError for an empty space, and for what is neither a list of values nor a range.
    """
    found: dict[str, Dimension] = {}
    for text in texts:
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError("takes KEY=VALUE,VALUE,...", where=f"--grid {text}", remedy=_EXAMPLES)
        if key in found:
            raise UserError(
                "the key is given twice", where=f"--grid {key}", remedy="List all its values in one --grid."
            )
        found[key] = _parse_dimension(key, raw)
    if not found:
        raise UserError("the space is empty: no key is varied", where="--grid", remedy=_EXAMPLES)
    return tuple(found.values())


_EXAMPLES = "For example --grid training.learning_rate=1e-5,3e-5, or with --random 20 also loguniform(1e-5, 1e-3)."


def _parse_dimension(key: str, raw: str) -> Dimension:
    if match := _RANGE.fullmatch(raw):
        return _parse_range(key, match[1], match[2])
    values = [item.strip() for item in itertools.islice(_split(key, raw), MAX_VALUES + 1)]
    if len(values) > MAX_VALUES:
        raise UserError(
            f"more than {MAX_VALUES:,} values",
            where=f"--grid {key}",
            remedy="Give a range, and draw from it: --random N.",
        )
    if values == [""]:
        raise UserError("the space is empty: the key has no values", where=f"--grid {key}", remedy=_EXAMPLES)
    parsed = []
    for value in values:
        if not value:
            raise UserError(
                "an empty value between two commas", where=f"--grid {key}", remedy="Write null for no value."
            )
        if _RANGE.fullmatch(value):
            raise UserError(f"{value} is one of several values", where=f"--grid {key}", remedy="A range stands alone.")
        try:
            parsed.append(repr(parse_value(value)))
        except ValueError as error:
            raise UserError(
                f"not a YAML value: {error}", where=f"--grid {key}={value}", remedy="Quote text that has signs of YAML."
            ) from None
    seen: set[str] = set()
    for value, one in zip(values, parsed, strict=True):
        if one in seen:
            raise UserError(f"the value {value} is given twice", where=f"--grid {key}")
        seen.add(one)
    return Choices(key, tuple(values))


def _parse_range(key: str, kind: str, inside: str) -> Range:
    where = f"--grid {key}={kind}({inside})"
    if kind not in RANGES:
        near = nearest(kind, RANGES)
        meant = f"Did you mean {near}?" if near else f"There are {', '.join(RANGES)}."
        raise UserError(f"no such range: {kind}", where=where, remedy=meant)
    bounds = inside.split(",")
    try:
        low, high = (float(bound) for bound in bounds)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError
    except ValueError:
        raise UserError("a range takes two numbers", where=where, remedy=f"Such as {kind}(1, 10).") from None
    if low >= high:
        raise UserError("the first number of a range is the lower one", where=where)
    if kind == "loguniform" and low <= 0:
        raise UserError("a logarithmic range is above 0", where=where, remedy="Use uniform, or a small lower bound.")
    if kind == "integers" and not (low.is_integer() and high.is_integer()):
        raise UserError("a range of whole numbers has whole bounds", where=where)
    return Range(key, kind, low, high)


def _split(key: str, text: str) -> Iterator[str]:
    """At commas outside of brackets and quotes."""
    closing: list[str] = []
    quote, start = "", 0
    for index, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and not text[start:index].strip(" [{,:("):
            quote = sign
        elif sign in _BRACKETS:
            closing.append(_BRACKETS[sign])
        elif closing and sign == closing[-1]:
            closing.pop()
        elif sign == "," and not closing:
            yield text[start:index]
            start = index + 1
    if quote or closing:
        raise UserError(f"{quote or closing[-1]} is missing", where=f"--grid {key}={text}")
    yield text[start:]


def list_trials(space: Sequence[Dimension], draws: int | None, seed: int) -> tuple[list[dict[str, str]], list[str]]:
    """(the values of each trial, notes). draws: number of random points; None for every point of the grid.

    Points are different from each other, and the same for the same arguments.
    Raises: UserError for a range without `draws`, and for more than MAX_TRIALS trials.
    """
    ranges = [one for one in space if isinstance(one, Range)]
    if draws is None:
        if ranges:
            where, what = f"--grid {ranges[0].key}", f"{ranges[0].kind} is a range, which has no grid"
            raise UserError(what, where=where, remedy="Draw N points of it with --random N, or list values.")
        _check_count(_count(space), "the grid")
        return list(_grid(space)), []
    _check_count(draws, f"--random {draws}")
    source = random.Random(seed)
    if not ranges:
        return _draw_points(space, draws, source)
    found: dict[tuple[str, ...], None] = {}
    for _ in range(draws * DRAWS_PER_TRIAL):
        found.setdefault(tuple(one.draw(source) for one in space))
        if len(found) == draws:
            break
    keys = [one.key for one in space]
    notes = [] if len(found) == draws else [f"only {len(found):,} different points were found for --random {draws:,}"]
    return [dict(zip(keys, point, strict=True)) for point in found], notes


def _draw_points(
    space: Sequence[Dimension], draws: int, source: random.Random
) -> tuple[list[dict[str, str]], list[str]]:
    """Of a space of lists alone."""
    count = _count(space)
    if draws >= count:
        notes = (
            [f"the grid has {count:,} points, fewer than --random {draws:,}: all are tried"] if draws > count else []
        )
        return list(_grid(space)), notes
    chosen = source.sample(range(count), draws)
    points = []
    for number in chosen:
        point = {}
        for one in reversed(space):
            assert isinstance(one, Choices)
            number, index = divmod(number, len(one.values))
            point[one.key] = one.values[index]
        points.append({one.key: point[one.key] for one in space})
    return points, []


def _grid(space: Sequence[Dimension]) -> Iterator[dict[str, str]]:
    keys = [one.key for one in space]
    for point in itertools.product(*(one.values for one in space if isinstance(one, Choices))):
        yield dict(zip(keys, point, strict=True))


def _count(space: Sequence[Dimension]) -> int:
    return math.prod(len(one.values) for one in space if isinstance(one, Choices))


def _check_count(count: int, what: str) -> None:
    if count > MAX_TRIALS:
        raise UserError(
            f"{what} has {count:,} trials, more than {MAX_TRIALS:,}", remedy="Draw some of them: --random N."
        )
