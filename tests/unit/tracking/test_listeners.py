"""A mirror that fails is told once and left out; the journal's failure ends training; `finished` reaches all."""

from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from finetune.tracking.console import Console
from finetune.tracking.journal import Journal
from finetune.tracking.listeners import Listeners
from finetune.tracking.wandb_mirror import WandbMirror


class Note:
    """Remembers what it was told; fails at the calls named."""

    def __init__(self, *fails: str, essential: bool = False) -> None:
        self.fails, self.essential, self.told = fails, essential, []

    def __getattr__(self, name):
        def call(*args, **values):
            if name in self.fails:
                raise FinetuneError(f"{name} broke")
            self.told.append((name, *args))

        return call


def tell_all(listeners):
    listeners.started(start_step=0, total_steps=2, steps_per_epoch=2, facts={})
    listeners.step(step=1, epoch=0.5, progress={"loss": 1.0})
    listeners.row({"step": 1})
    listeners.row({"step": 2})
    listeners.table("samples", step=2, columns=[], rows=[])
    listeners.checkpoint(Path("x"), step=2, best=True)
    listeners.message("hello")
    listeners.finished(status="done", summary={})


CALLS = ["started", "step", "row", "row", "table", "checkpoint", "message", "finished"]


def test_each_is_told_everything_in_order():
    notes = [Note(), Note()]
    tell_all(Listeners(notes))
    assert [[call[0] for call in note.told] for note in notes] == [CALLS, CALLS]


def test_a_failing_mirror_is_told_once_and_hears_only_the_end():
    good, bad = Note(), Note("row")
    tell_all(Listeners([bad, good]))
    messages = [call[1] for call in good.told if call[0] == "message"]
    assert len(messages) == 2 and "Note failed and is disabled; training continues" in messages[0]
    assert "row broke" in messages[0] and messages[1] == "hello"
    assert [call[0] for call in good.told if call[0] != "message"] == [name for name in CALLS if name != "message"]
    assert [call[0] for call in bad.told] == ["started", "step", "finished"]


def test_even_a_listener_that_cannot_be_told_of_it_does_not_matter():
    tell_all(Listeners([Note("row"), Note("message"), Note("finished")]))


def test_an_essential_failure_ends_training_and_the_others_still_hear_the_end():
    good = Note()
    listeners = Listeners([Note("row", "finished", essential=True), good])
    with pytest.raises(FinetuneError, match="row broke"):
        listeners.row({"step": 1})
    with pytest.raises(FinetuneError, match="finished broke"):
        listeners.finished(status="failed", summary={})
    assert [call[0] for call in good.told] == ["finished"]


def test_the_real_listeners_have_the_shape_of_the_loops_protocol():
    from finetune.events import Listener

    names = {name for name in vars(Listener) if not name.startswith("_")}
    assert len(names) == 7
    for kind in (Journal, Console, WandbMirror, Listeners):
        assert names <= set(dir(kind))
    assert Journal.essential


def test_figures_that_every_row_has_reach_all_listeners_from_then_on():
    class Rows(Note):
        def row(self, row):
            self.told.append(row)

    ones = [Rows(), Rows()]
    listeners, asked = Listeners(ones), {"step": 2, "loss": 0.5}
    listeners.row({"step": 1})
    listeners.add_to_rows(data_version=2.0)
    listeners.row(asked)
    assert [one.told for one in ones] == [[{"step": 1}, {"step": 2, "loss": 0.5, "data_version": 2.0}]] * 2
    assert asked == {"step": 2, "loss": 0.5}, "the caller's row stays as it is"
