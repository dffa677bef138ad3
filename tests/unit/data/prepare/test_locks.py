"""Tests that one process makes an entry while others wait and say for whom, and that entries in use are not removed."""

import multiprocessing
import os
import signal
import time

import pytest

from finetune.data.prepare import locks
from finetune.data.prepare.cache import cache_folder, publish
from finetune.data.prepare.cache_removal import remove_entry
from finetune.data.prepare.locks import use

FORK = multiprocessing.get_context("fork")


def make_slowly(seconds, sender):
    def write(folder):
        sender.send("writing")
        time.sleep(seconds)
        (folder / "x").write_text(str(os.getpid()))

    publish("kind", "key", write, about="train", notify=sender.send)


def started(seconds):
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=make_slowly, args=(seconds, sender))
    process.start()
    sender.close()
    return process, receiver


def test_the_second_waits_for_the_first_and_says_so(cache):
    first, said = started(0.5)
    assert said.recv() == "writing"
    second, also_said = started(0.5)
    assert also_said.recv() == f"waiting for process {first.pid}, which prepares train"
    second.join(10)
    assert (cache / "kind" / "key" / "x").read_text() == str(first.pid)
    with pytest.raises(EOFError):  # it did not write itself
        also_said.recv()
    first.join(10)
    assert [path.name for path in (cache / "kind").iterdir()] == ["key"]


def test_the_second_goes_on_if_the_first_dies(cache):
    first, said = started(60)
    said.recv()
    second, also_said = started(0)
    also_said.recv()
    os.kill(first.pid, signal.SIGKILL)
    assert also_said.recv() == f"process {first.pid} has ended; continuing with train"
    second.join(10)
    assert second.exitcode == 0 and (cache / "kind" / "key" / "x").read_text() == str(second.pid)
    first.join()


def test_a_file_system_without_locks_is_reported_and_used(cache, monkeypatch):
    def refuse(file, what):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    lines = []
    path = publish("kind", "key", lambda folder: (folder / "x").write_text("x"), about="train", notify=lines.append)
    assert (path / "x").read_text() == "x"
    assert len(lines) == 1 and "does not support locks (No locks available)" in lines[0]
    assert use(path)


def hold(path, sender):
    sender.send(use(path))
    time.sleep(60)


def test_an_entry_in_use_is_not_removed(cache):
    entry = publish("kind", "key", lambda folder: (folder / "x").write_text("x"))
    receiver, sender = FORK.Pipe(duplex=False)
    user = FORK.Process(target=hold, args=(entry, sender))
    user.start()
    assert receiver.recv() is True
    assert not remove_entry(entry) and (entry / "x").exists()
    user.kill()
    user.join()
    assert remove_entry(entry) and not entry.exists()
    assert list((cache_folder() / "kind").iterdir()) == []


def test_an_entry_that_is_gone_cannot_be_used(cache):
    assert not use(cache / "kind" / "key")


def test_an_entry_in_the_making_is_not_removed(cache):
    maker, said = started(60)
    assert said.recv() == "writing"
    (partial,) = (cache / "kind").glob("key.incomplete-*")
    assert not remove_entry(partial) and partial.is_dir()
    maker.kill()
    maker.join()
    assert remove_entry(partial) and not partial.exists()
    assert list((cache / "kind").iterdir()) == []


def test_an_entry_that_is_made_again_is_marked_again(cache):
    entry = publish("kind", "key", lambda folder: (folder / "x").write_text("x"))
    assert use(entry)
    entry.rename(entry.with_name("key.removed-1"))
    assert not use(entry)
    publish("kind", "key", lambda folder: (folder / "x").write_text("x"))
    assert use(entry) and not remove_entry(entry)


def test_marks_leave_files_for_others_to_open(cache, monkeypatch):
    monkeypatch.setattr(locks, "_most_marks", lambda: 2)
    monkeypatch.setattr(locks, "_used", {})
    entries = [publish("kind", f"key{i}", lambda folder: (folder / "x").write_text("x")) for i in range(4)]
    assert all(use(entry) for entry in entries) and len(locks._used) == 2
    for file in locks._used.values():
        os.close(file)
