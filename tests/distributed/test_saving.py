"""A save that is killed after any of its file operations, or meets a full disk at any of its writes, costs nothing: the
newest whole checkpoint is found, the only good one is never deleted. A save while training goes on changes no number.
"""

import gc
import os
import shutil
import signal
import sys
import threading
from contextlib import ExitStack
from unittest import mock

import pytest
import torch

from finetune.errors import TrainingFailed
from finetune.training import checkpoint
from finetune.training.checkpoint import Saver
from finetune.training.checkpoint_reader import find_checkpoints, named_checkpoint, open_checkpoint
from finetune.training.checkpoint_writer import clear_leftovers
from tests.distributed import toy
from tests.faults import small_disk
from tests.ranks import RankError

OPERATIONS = {
    "open", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync", "write", "flush", "close", "__exit__",
    "truncate", "link", "symlink", "serialize_file",
}  # fmt: skip


class KillAfter:
    """Counts this process's file operations, in all its threads, and kills it right after the chosen one."""

    def __init__(self, chosen: int) -> None:
        self.chosen, self.names = chosen, []

    def __call__(self, frame, event, function):
        if event != "c_return" or function.__name__ not in OPERATIONS:
            return
        owner = getattr(function, "__self__", None)
        where = getattr(owner, "__name__", None) or type(owner).__module__
        if where not in ("posix", "_io", "io") and function.__name__ != "serialize_file":
            return
        self.names.append(function.__name__)
        if len(self.names) == self.chosen:
            os.kill(os.getpid(), signal.SIGKILL)

    def __enter__(self):
        threading.setprofile(self)  # the saver's thread begins after this
        sys.setprofile(self)
        return self

    def __exit__(self, *exception):
        sys.setprofile(None)
        threading.setprofile(None)


class Alone:
    """The session of a forked process: its threads, and so gloo's, are gone."""

    rank, world_size, is_main, is_replica_lead, device = 0, 1, True, True, torch.device("cpu")
    replica, replicas, local_world_size = 0, 1, 1

    def all_gather(self, value):
        return [value]

    def broadcast(self, value):
        return value


def save(engine, folder, step, *, best=False, keep=1, hurry=False):
    saver = Saver(engine, folder, training={"task": "toy"}, keep=keep)
    saver.begin(step, {"step": step}, best=best, hurry=hurry)
    saver.finish()
    saver.close()
    return saver.latest


def in_a_fork(work):
    """Run it in a forked process; how that ended: an exit code, or minus a signal.

    The parent's garbage is the parent's: collecting a process group whose threads are not in the child ends it.
    """
    gc.collect()
    child = os.fork()
    if child == 0:
        gc.disable()
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after_every_operation(folder, hurry):
    """On one rank. For each operation of the save of step 2: [name, newest whole step afterwards]."""
    engine, batch = toy.open_toy("none", micro_batch=1)
    toy.train_toy(engine, batch, range(1))
    engine.session = Alone()
    base = folder / "base"
    assert in_a_fork(lambda: save(engine, base, 1)) == 0
    counted = folder / "operations.txt"

    def count():
        case = shutil.copytree(base, folder / "counted")
        with KillAfter(-1) as killer:
            save(engine, case, 2, hurry=hurry)
        counted.write_text("\n".join(killer.names))

    assert in_a_fork(count) == 0
    found = []
    for number, name in enumerate(counted.read_text().splitlines(), start=1):
        case = shutil.copytree(base, folder / f"case-{number}")

        def die(case=case, number=number):
            with KillAfter(number):
                save(engine, case, 2, hurry=hurry)

        assert in_a_fork(die) == -signal.SIGKILL, (number, name)
        published = find_checkpoints(case)
        steps = [open_checkpoint(path).step for path in published]  # each that has its name is whole
        assert steps in ([1], [2, 1], [2]), (number, name, steps)
        latest = named_checkpoint(case, "latest")
        assert latest is not None and open_checkpoint(latest).step in steps, (number, name)
        found.append((name, steps[0]))
        clear_leftovers(case)
        assert in_a_fork(lambda case=case: save(engine, case, 3)) == 0
        assert open_checkpoint(find_checkpoints(case)[0]).step == 3
        assert {path.name for path in case.iterdir()} == {"step-00000003", "latest"}, (number, name)
        shutil.rmtree(case)
    return found


@pytest.mark.parametrize("hurry", [False, True])
def test_a_kill_after_every_file_operation_of_a_save(ranks, tmp_path, hurry):
    found = ranks.options(open_group=False, timeout=240).run(1, kill_after_every_operation, tmp_path, hurry)[0]
    names = [name for name, _ in found]
    assert {"mkdir", "serialize_file", "fsync", "open", "write", "rename", "replace", "rmdir"} <= set(names), names
    steps = [step for _, step in found]
    assert steps == sorted(steps) and set(steps) == {1, 2}
    assert names[steps.index(2)] == "rename", "the rename publishes, and nothing else"
    assert ("fsync" in names[: steps.index(2)]) != hurry, "a disk that is slow delays no checkpoint that is needed soon"
    assert len(names) > 25


def save_and_die(folder, chosen):
    """On two ranks: a whole save, then one in which rank 1 is killed after its chosen operation; -1: not killed."""
    engine, batch = toy.open_toy("zero2")
    toy.train_toy(engine, batch, range(1))
    save(engine, folder, 1)
    if engine.session.rank == 0:
        save(engine, folder, 2)
        return None
    with KillAfter(chosen) as killer:
        save(engine, folder, 2)
    return killer.names


@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_a_kill_of_another_rank_while_it_writes(ranks, tmp_path, chosen):
    pool = ranks.options(open_group=False, timeout=120)
    with pytest.raises(RankError) as caught:
        pool.run(2, save_and_die, tmp_path, chosen)
    assert "exit code -9" in str(caught.value)
    assert [open_checkpoint(path).step for path in find_checkpoints(tmp_path)] == [1]
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "latest"}


def fill_up_and_save(folder, lefts):
    """On each rank: what a save says when so many (files of a rank, pages) are left on the disk; then with room again."""
    engine, batch = toy.open_toy("zero2")
    toy.train_toy(engine, batch, range(1))
    size = max(size for size, _ in save(engine, folder / "checkpoints", 1).manifest.files.values())
    told = []
    for files, pages in lefts:
        left = int(files * size) + pages * 4096
        if engine.session.is_main:
            while (free := shutil.disk_usage(folder).free - left) > 0:
                with (folder / "filler").open("ab", buffering=0) as file:
                    file.write(bytes(min(free, 1 << 16)))
        engine.session.wait()
        try:
            save(engine, folder / "checkpoints", 2)
            told.append("")
        except TrainingFailed as error:
            told.append(str(error))
        engine.session.wait()
        published = [open_checkpoint(path).step for path in find_checkpoints(folder / "checkpoints")]
        assert published == ([1] if told[-1] else [2]), (left, told[-1], published)
        latest = named_checkpoint(folder / "checkpoints", "latest")
        assert latest is not None and open_checkpoint(latest).step == published[0]
        assert not list((folder / "checkpoints").glob("*.incomplete"))
        engine.session.wait()
        if engine.session.is_main:
            (folder / "filler").unlink()
        engine.session.wait()
    save(engine, folder / "checkpoints", 2)
    return told


def test_a_full_disk_at_each_write(ranks, tmp_path):
    lefts = [(0, 0), (0, 1), (0.5, 0), (1, 2), (2, -3), (2, 2), (2, 16)]
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        first, second = ranks.options(open_group=False, timeout=120).run(2, fill_up_and_save, disk, lefts)
    assert first == second, "every rank raises, and says the same"
    *full, fitting = first
    assert fitting == ""
    for said in full:
        assert "the disk is full: " in said and "step-00000002.incomplete" in said, said
        assert "needed" in said and "free" in said and "The previous checkpoint is untouched" in said, said
    assert "state-0000" in full[2] and "KiB needed" in full[2]
    assert "manifest.json" in full[-1], full[-1]


def train_and_save(folder, every, failing=False, crowded=False):
    """On each rank: losses of 8 steps with a save every so many, and how many steps were made while one was under way."""
    engine, batch = toy.open_toy("zero2")
    saver = Saver(engine, folder, training={"task": "toy"}, keep=2)
    meanwhile, losses = 0, []
    with ExitStack() as stack:
        if failing and engine.session.rank == 1:
            stack.enter_context(mock.patch.object(checkpoint, "write_parts", fail_to_write))
        if crowded:
            stack.enter_context(mock.patch.object(checkpoint, "available_bytes", lambda: 0))
        stack.callback(saver.close)
        for index in range(8):
            meanwhile += saver.under_way
            losses += toy.train_toy(engine, batch, range(index, index + 1))[0]
            if saver.under_way and not engine.session.any(saver.busy):
                saver.advance()
            if every and (index + 1) % every == 0:
                saver.begin(index + 1, {"step": index + 1}, best=index == 1)
                assert not (crowded and saver.busy)
        saver.finish()
        return losses, meanwhile, saver.best.step if saver.best else None


def tell_failure(*arguments, **options):
    try:
        train_and_save(*arguments, **options)
    except TrainingFailed as error:
        return str(error)


def fail_to_write(path, parts, shapes, threads, *, synced):
    raise OSError(5, "Input/output error", str(path))


def test_saving_meanwhile_changes_no_number_and_keeps_the_best(ranks, tmp_path):
    pool = ranks.options(open_group=False, timeout=120)
    undisturbed = pool.run(2, train_and_save, tmp_path / "none", 0)[0]
    saved = pool.run(2, train_and_save, tmp_path / "saved", 2)[0]
    assert saved[0] == undisturbed[0]
    assert saved[1] > 0 and saved[2] == 2
    kept = [open_checkpoint(path).step for path in find_checkpoints(tmp_path / "saved")]
    assert kept == [8, 6, 2], "the newest two, and the best"
    crowded = pool.run(2, train_and_save, tmp_path / "crowded", 2, crowded=True)[0]
    assert crowded[0] == undisturbed[0]
    for name in ("state-00000-of-00002.safetensors", "state-00001-of-00002.safetensors"):
        ours, theirs = (tmp_path / run / "step-00000008" / name for run in ("saved", "crowded"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_what_one_rank_cannot_write_all_ranks_tell(ranks, tmp_path):
    told = ranks.options(open_group=False, timeout=120).run(2, tell_failure, tmp_path, 4, failing=True)
    assert told[0] == told[1]
    assert "cannot write" in told[0] and "state-00001-of-00002" in told[0] and "Input/output error" in told[0]
    assert not list(tmp_path.iterdir())
