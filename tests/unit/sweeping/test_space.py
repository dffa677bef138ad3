"""The space of a sweep: what is a list of values and what a range, which trials come of it, and what is refused."""

from __future__ import annotations

import math

import pytest

from finetune.app.sweeping.space import MAX_TRIALS, Choices, Range, list_trials, parse_space
from finetune.errors import UserError


def test_values_are_split_outside_of_brackets_and_quotes() -> None:
    space = parse_space(
        ["a.b=1e-5, 3e-5", "training.betas=[0.9,0.99],[0.9, 0.999]", "name='x,y',z's", "c={k: [1,2]},{}"]
    )
    assert space == (
        Choices("a.b", ("1e-5", "3e-5")),
        Choices("training.betas", ("[0.9,0.99]", "[0.9, 0.999]")),
        Choices("name", ("'x,y'", "z's")),
        Choices("c", ("{k: [1,2]}", "{}")),
    )


def test_a_grid_has_every_combination_once_in_order() -> None:
    trials, notes = list_trials(parse_space(["lr=1,2,3", "seed=7,8"]), None, 0)
    assert [tuple(trial.values()) for trial in trials] == [(a, b) for a in "123" for b in "78"]
    assert notes == []


def test_ranges_are_drawn_within_their_bounds_the_same_for_the_same_seed() -> None:
    space = parse_space(["lr=loguniform(1e-5, 1e-1)", "warmup=uniform(0,0.5)", "rank=integers(1,3)", "kind=a,b"])
    assert space[0] == Range("lr", "loguniform", 1e-5, 1e-1)
    trials, notes = list_trials(space, 200, 1)
    assert notes == [] and len({tuple(trial.values()) for trial in trials}) == 200
    rates = [float(trial["lr"]) for trial in trials]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    middle = sum(rate < 1e-3 for rate in rates)  # half of a logarithmic range lies below its geometric mean
    assert 70 <= middle <= 130
    assert {trial["rank"] for trial in trials} == {"1", "2", "3"} and {trial["kind"] for trial in trials} == {"a", "b"}
    assert list_trials(space, 200, 1)[0] == trials != list_trials(space, 200, 2)[0]


def test_random_points_of_lists_are_different_points_of_the_grid() -> None:
    space = parse_space(["a=1,2,3,4,5", "b=x,y,z"])
    grid = [tuple(trial.items()) for trial in list_trials(space, None, 0)[0]]
    drawn = [tuple(trial.items()) for trial in list_trials(space, 7, 3)[0]]
    assert len(set(drawn)) == 7 and set(drawn) <= set(grid)
    everything, notes = list_trials(space, 99, 3)
    assert len(everything) == 15 and "15 points" in notes[0]


def test_a_space_with_too_few_points_says_so() -> None:
    trials, notes = list_trials(parse_space(["rank=integers(1,3)"]), 10, 0)
    assert sorted(trial["rank"] for trial in trials) == ["1", "2", "3"]
    assert "only 3" in notes[0]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "empty"),
        (["lr="], "no values"),
        (["lr"], "KEY=VALUE"),
        (["=1"], "KEY=VALUE"),
        (["lr=1,,2"], "empty value"),
        (["lr=1,2,"], "empty value"),
        (["lr=1,1.0", "lr=2"], "given twice"),
        (["lr=0.001,1e-3"], "given twice"),
        (["lr=[1,2"], "] is missing"),
        (["name='a,b"], "' is missing"),
        (["a={b: c,d: [}"], "is missing"),
        (["a=b: c: d"], "not a YAML value"),
        (["lr=loguniform(1e-5,1e-3),5"], "one of several"),
        (["lr=lognormal(1,2)"], "no such range"),
        (["lr=uniform(1)"], "two numbers"),
        (["lr=uniform(1,2,3)"], "two numbers"),
        (["lr=uniform(a,b)"], "two numbers"),
        (["lr=uniform(1,inf)"], "two numbers"),
        (["lr=uniform(2,1)"], "lower one"),
        (["lr=loguniform(0,1)"], "above 0"),
        (["lr=integers(1,2.5)"], "whole bounds"),
    ],
)
def test_what_is_no_space_is_refused(texts: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_space(texts)
    assert says in caught.value.what


def test_a_grid_of_a_range_and_too_many_trials_are_refused() -> None:
    with pytest.raises(UserError, match="no grid"):
        list_trials(parse_space(["lr=uniform(0,1)"]), None, 0)
    values = ",".join(map(str, range(math.isqrt(MAX_TRIALS) + 1)))
    with pytest.raises(UserError, match="more than"):
        list_trials(parse_space([f"a={values}", f"b={values}"]), None, 0)
    with pytest.raises(UserError, match="more than"):
        list_trials(parse_space(["lr=uniform(0,1)"]), MAX_TRIALS + 1, 0)
