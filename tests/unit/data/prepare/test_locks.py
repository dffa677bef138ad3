"""Tests that one process makes an entry while others wait and say for whom, and that entries in use are not removed."""

import multiprocessing
import os
import signal
import time

import pytest

from finetune.data.prepare import locks
from finetune.data.prepare.cache import cache_folder, publish, remove_entry
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
    assert len(lines) == 1 and "supports no locks (No locks available)" in lines[0]
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
