"""Successive halving as a pure function: who goes on, who is paused, who takes the place of a failed trial."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest

from finetune.app.sweeping.halving import Decision, Observation, decide, rank, rungs_of


@dataclass
class Simulated:
    """A trial of 80 steps with an evaluation every 10, whose score rises to `score`. Paused some steps late."""

    score: float
    breaks_at: int = 1000
    stops_at: int = 1000
    step: int = 0
    failed: bool = False
    seen: list[tuple[int, float]] = field(default_factory=list)

    def observe(self) -> Observation:
        finished = not self.failed and (self.step >= 80 or self.step >= self.stops_at)
        return Observation(tuple(self.seen), 80 if self.step else 0, finished=finished, failed=self.failed)

    def train_to(self, fraction: float, late: int) -> None:
        """As a process would: until it is seen at the fraction, and `late` steps more."""
        while not self.failed and not self.observe().has_reached(fraction):
            self._step()
        for _ in range(late):
            if not self.failed and not self.observe().finished:
                self._step()

    def _step(self) -> None:
        self.step += 1
        self.failed = self.step >= self.breaks_at
        if self.step % 10 == 0 and not self.failed:
            self.seen.append((self.step, self.score * self.step / 80))


def sweep(trials: list[Simulated], rungs: tuple[float, ...], draw: random.Random, late: int = 3) -> Decision:
    """To the end, one trial at a time in any order."""
    for _ in range(1000):
        decision = decide([trial.observe() for trial in trials], rungs)
        if not decision.wanted:
            return decision
        trials[draw.choice(decision.wanted)].train_to(decision.fraction, draw.randrange(late + 1))
    raise AssertionError("the sweep does not end")


@pytest.mark.parametrize(
    ("trials", "rungs"),
    [(1, (1.0,)), (2, (0.5, 1.0)), (3, (0.5, 1.0)), (4, (0.25, 0.5, 1.0)), (12, (0.125, 0.25, 0.5, 1.0))],
)
def test_rungs_halve_the_trials_down_to_one_or_two(trials: int, rungs: tuple[float, ...]) -> None:
    assert rungs_of(trials) == rungs
    assert rungs_of(trials, halving=False) == (1.0,)


@pytest.mark.parametrize("seed", range(5))
def test_twelve_trials_end_with_the_best_at_a_third_of_the_steps(seed: int) -> None:
    draw = random.Random(seed)
    scores = [index / 12 for index in range(12)]
    draw.shuffle(scores)
    trials = [Simulated(score) for score in scores]
    decision = sweep(trials, rungs_of(12), draw)
    assert [trials[index].score for index in decision.remaining] == [11 / 12, 10 / 12]
    reached = sorted(trial.seen[-1][0] for trial in trials)
    assert reached == [10] * 6 + [20] * 3 + [40] + [80] * 2  # 12 trials at 1/8, 6 at 1/4, 3 at 1/2, 2 to the end
    assert sum(trial.step for trial in trials) <= 0.5 * 12 * 80
    assert decision.rungs[decision.remaining[0]] == 3
    assert [trials[index].score for index in rank([one.observe() for one in trials], decision)][:2] == [
        11 / 12,
        10 / 12,
    ]


def test_the_order_in_which_trials_run_changes_nothing() -> None:
    scores = [random.Random(9).random() for _ in range(9)]
    ends = set()
    for seed in range(10):
        trials = [Simulated(score) for score in scores]
        decision = sweep(trials, rungs_of(9), random.Random(seed))
        ends.add((decision.remaining, decision.rungs))
    assert len(ends) == 1


def test_a_failed_trial_gives_its_place_to_the_next_one() -> None:
    trials = [Simulated(0.9, breaks_at=5), Simulated(0.8, breaks_at=60), Simulated(0.7), Simulated(0.6)]
    decision = sweep(trials, rungs_of(4), random.Random(0))
    assert decision.remaining == (2,) and trials[2].observe().finished
    assert trials[0].failed and trials[1].failed
    assert rank([one.observe() for one in trials], decision)[0] == 2


def test_a_sweep_of_failures_ends() -> None:
    decision = sweep([Simulated(1, breaks_at=3) for _ in range(5)], rungs_of(5), random.Random(0))
    assert decision.remaining == () and decision.wanted == ()


def test_a_trial_that_its_recipe_stops_early_is_finished() -> None:
    trials = [Simulated(0.9, stops_at=20), Simulated(0.5), Simulated(0.4), Simulated(0.3)]
    decision = sweep(trials, rungs_of(4), random.Random(0))
    assert trials[0].step <= 23 and trials[0].observe().finished
    assert decision.rungs[1] == 2, "it has 0.225 when it stops, and is passed by a trial that has 0.25 at the half"


def test_what_is_not_finite_comes_last_and_later_evaluations_do_not_count_at_a_rung() -> None:
    broken = Observation(((10, -math.inf), (20, -math.inf)), 80)
    late = Observation(((10, 0.1), (20, 0.9)), 80)
    early = Observation(((10, 0.2),), 80)
    decision = decide([broken, late, early, Observation(((10, 0.15),), 80)], (0.125, 1.0))
    assert decision.wanted == (2, 3)
    assert late.score_at(0.125) == 0.1 and late.score_at(1.0) == 0.9


def test_one_evaluation_at_the_end_is_no_reason_to_pause() -> None:
    at_end = Observation(((80, 0.5),), 80)
    assert at_end.has_reached(0.5) and at_end.is_at_end and not at_end.has_reached(1.0)
    decision = decide([at_end, Observation()], (0.5, 1.0))
    assert decision.wanted == (1,) and decision.fraction == 0.5


def test_without_halving_all_train_to_the_end() -> None:
    trials = [Simulated(score / 10) for score in range(5)]
    sweep(trials, rungs_of(5, halving=False), random.Random(0))
    assert all(trial.observe().finished for trial in trials)
