"""Proves what a watcher decides of ranks that it only hears of: no process is started, and time is a number."""

from types import SimpleNamespace

import pytest

from finetune.distributed import watching
from finetune.distributed.failure import Failure
from finetune.distributed.stop_signals import Interrupts
from finetune.distributed.watching import Watcher
from finetune.errors import EXIT_FAILED, EXIT_STOPPED, Stopped, TrainingFailed


class Ranks:
    """Two ranks, as RankProcesses says of them."""

    def __init__(self, folder):
        self.started, self.ends, self.said_from, self.asked = [None, None], {}, 0, 0
        self.reported: list[Failure] = []
        self.rendezvous = SimpleNamespace(logs=folder / "logs")
        self.launch = SimpleNamespace(again="Again.")

    def note_ends(self):
        return len(self.ends) == len(self.started)

    def running(self):
        return [rank for rank in range(len(self.started)) if rank not in self.ends]

    def halted(self):
        return {}

    def failures(self):
        return self.reported

    def ask_to_stop(self, notify):
        self.asked += 1


@pytest.fixture
def watched(tmp_path, monkeypatch):
    clock, lines = SimpleNamespace(now=1000.0), []
    monkeypatch.setattr(watching.time, "monotonic", lambda: clock.now)
    ranks, interrupts = Ranks(tmp_path), Interrupts(lines.append)
    return Watcher(ranks, interrupts, lines.append), ranks, interrupts, clock


def failed(rank, exit_code=EXIT_FAILED, *, echo=False):
    return Failure(rank, 0.0, f"rank {rank} broke", "", "", exit_code, echo)


def test_the_others_have_a_moment_after_the_first_failure(watched):
    watcher, ranks, _, clock = watched
    assert not watcher.is_over() and watcher.outcome() is None
    ranks.reported = [failed(1)]
    assert not watcher.is_over()
    clock.now += watching.GRACE_SECONDS + 0.1
    assert watcher.is_over(), "rank 0 waits for a rank that is gone"
    error = watcher.outcome()
    assert isinstance(error, TrainingFailed) and "rank 1 broke" in error.what


def test_after_a_request_ranks_have_time_while_a_checkpoint_grows(watched, tmp_path):
    watcher, ranks, interrupts, clock = watched
    interrupts.note(15, None)
    assert not watcher.is_over() and ranks.asked == 1
    clock.now += watching.STOP_SECONDS - 1
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert not watcher.is_over(), "a checkpoint appeared"
    clock.now += 2
    assert not watcher.is_over()
    ranks.ends[0] = EXIT_STOPPED
    clock.now += watching.STOP_SECONDS
    assert watcher.is_over() and watcher.overdue == [1]
    error = watcher.outcome()
    assert "did not end within 120 s of SIGTERM, and was killed" in error.what and error.where == "rank 1"


def test_a_second_ctrl_c_and_a_first_signal_where_nothing_is_saved_end_it_at_once(watched, tmp_path):
    watcher, ranks, interrupts, _ = watched
    interrupts.note(2, None)
    assert not watcher.is_over() and not interrupts.aborted
    interrupts.note(2, None)
    assert watcher.is_over() and interrupts.aborted and ranks.asked == 1
    at_once = Interrupts(lambda line: None, ends_at_once=True)
    at_once.note(15, None)
    other = Watcher(Ranks(tmp_path), at_once, lambda line: None)
    assert other.is_over() and isinstance(other.outcome(), Stopped) and not at_once.aborted


def test_what_a_rank_reports_goes_before_what_another_only_noticed(watched):
    watcher, ranks, _, _ = watched
    ranks.ends = {0: EXIT_FAILED, 1: -9}
    ranks.reported = [failed(0, echo=True)]
    assert "was killed by SIGKILL" in watcher.outcome().what
    ranks.reported = [failed(1), failed(0, echo=True)]
    assert "rank 1 broke" in watcher.outcome().what
