"""Trains the trials of a sweep: starts those that are wanted, pauses those that are not, until nothing is left to do."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from finetune.app.runs import is_taken
from finetune.app.sweeping.halving import Decision, Observation, decide
from finetune.app.sweeping.process import TrialProcess
from finetune.app.sweeping.slots import Slot
from finetune.app.sweeping.state import State
from finetune.app.sweeping.trials import Measure, measure_of, observe
from finetune.distributed.stop_signals import stop_signals
from finetune.errors import Stopped, UserError
from finetune.terminal import print_line
from finetune.units import format_figure

POLL_SECONDS = 0.05


class Runner:
    """One sweep in this process.

    arguments: of `finetune train` for any trial, without its run folder and its values. rungs: see halving.py.
    recipe_file: ends the sweep if it changes, because trials that start later would not be comparable.
    """

    def __init__(
        self,
        state: State,
        slots: Sequence[Slot],
        measure: Measure,
        rungs: Sequence[float],
        *,
        arguments: Sequence[str],
        recipe_file: Path,
    ) -> None:
        self.state, self.measure, self.rungs = state, measure, rungs
        self._arguments, self._recipe_file = list(arguments), recipe_file
        self._digest = _digest(recipe_file)
        self._free = list(slots)
        self._running: dict[int, tuple[TrialProcess, Slot]] = {}
        self._seen: dict[int, Observation] = {}
        self._sizes: dict[int, int] = {}  # bytes of a running trial's journal when it was last read
        self._interrupts = 0
        self._waits: set[int] = set()
        self._fault: UserError | None = None

    @property
    def observations(self) -> list[Observation]:
        return [self._seen[number] for number in range(len(self.state.trials))]

    def run(self) -> Decision:
        """To the end. Raises: Stopped, after every trial that ran has saved a checkpoint; UserError for an edited recipe."""
        for number in range(len(self.state.trials)):
            self._observe(number)
        before = {one: signal.signal(one, self._interrupt) for one in stop_signals()}
        try:
            while True:
                decision = self._look()
                if not self._running and (self._interrupts or self._fault or not decision.wanted):
                    break
                time.sleep(POLL_SECONDS)
        finally:
            for process, _ in self._running.values():  # nothing, unless something here failed
                process.ask_to_stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._fault is not None:
            raise self._fault
        if decision.wanted:
            raise Stopped("the sweep stopped; run the same command to resume")
        return decision

    def _look(self) -> Decision:
        """One round: what ended, what is decided now, what is paused and started for it."""
        for number, (process, slot) in list(self._running.items()):
            if (end := process.poll()) is not None:
                self._ended(number, process, end)
                del self._running[number]
                self._free.append(slot)
            elif self._journal_grew(number):
                self._observe(number)
        decision = decide(self.observations, self.rungs)
        if self._interrupts or self._fault:
            for process, _ in self._running.values():
                process.ask_to_stop()
            return decision
        for number, (process, _) in self._running.items():
            if number not in decision.wanted and not self._seen[number].is_at_end:
                process.ask_to_stop()
        for number in decision.wanted:
            if self._free and number not in self._running and self._may_start(number):
                self._start(number, decision)
        return decision

    def _may_start(self, number: int) -> bool:
        """Not while a process of an earlier sweep, which was killed, still saves there."""
        trial = self.state.trials[number]
        if is_taken(self.state.path(trial)):
            if number not in self._waits:
                self._waits.add(number)
                print_line(f"{trial.name} waits: another process still trains in {self.state.path(trial)}")
            return False
        self._observe(number)
        if _digest(self._recipe_file) != self._digest:
            self._fault = UserError(
                "the recipe was changed while the sweep ran",
                where=str(self._recipe_file),
                remedy="Restore it to resume this sweep, or start the command again for a new one.",
            )
        return self._fault is None

    def _start(self, number: int, decision: Decision) -> None:
        trial, seen = self.state.trials[number], self._seen[number]
        slot = self._free.pop(0)
        arguments = [*self._arguments, "--run-dir", str(self.state.path(trial))]
        for one in trial.sets:
            arguments += ["--set", one]
        self._running[number] = TrialProcess(arguments, self.state.log(trial), slot.environment), slot
        aim = "to its end" if decision.fraction == 1 else f"to {decision.fraction:.3g} of its schedule"
        verb = "goes on" if seen.evaluations else "starts"
        print_line(f"{trial.name} {verb} {aim} on {slot.name}: {trial.describe()}")
        self._publish()

    def _ended(self, number: int, process: TrialProcess, end: str) -> None:
        trial = self.state.trials[number]
        self._observe(number)
        seen = self._seen[number]
        if end == "failed" or (end == "done" and not seen.finished):
            reason = process.reason() if end == "failed" else "ended without finishing its run"
            self.state.failures[trial.name] = reason
            self._observe(number)
            print_line(f"{trial.name} failed: {reason}")
            print_line(f"{' ' * len(trial.name)} the others go on; all it printed is in {self.state.log(trial)}")
        else:
            value = self._best(seen)
            if end == "stopped" and not process.asked:
                print_line(f"{trial.name} was stopped from outside: the sweep stops, too")
                self._interrupts = max(self._interrupts, 1)
            if seen.evaluations:
                step = f"step {seen.evaluations[-1][0]:,} of {seen.total_steps:,}"
                print_line(f"{trial.name} {'done' if seen.finished else 'paused'} after {step}: {value}")
        self._publish()

    def _best(self, seen: Observation) -> str:
        measure = measure_of([self.state.path(trial) for trial in self.state.trials], self.measure)
        value = measure.value(seen.score_at(1))
        return f"{measure.metric} {format_figure(value) if value is not None else 'is not finite'}"

    def _observe(self, number: int) -> None:
        trial = self.state.trials[number]
        failed = trial.name in self.state.failures
        self._seen[number] = observe(self.state.path(trial), self.measure, failed=failed)

    def _journal_grew(self, number: int) -> bool:
        try:
            size = (self.state.path(self.state.trials[number]) / "metrics.jsonl").stat().st_size
        except OSError:
            return False
        grew = self._sizes.get(number) != size
        self._sizes[number] = size
        return grew

    def _publish(self) -> None:
        running = [self.state.trials[number].name for number in self._running]
        self.state.publish(status="running", running=running, metric=self.measure.metric, mode=self.measure.mode)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts == 1:
            print_line(f"{signal.Signals(number).name}: the trials save and stop (Ctrl-C: at once)")
        elif number == signal.SIGINT:
            for process, _ in self._running.values():
                process.abort()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "missing"
