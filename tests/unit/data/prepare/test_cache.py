"""Tests that cache entries are complete or absent, and that disk errors are reported as such."""

import errno
import os
import time
from pathlib import Path

import pytest

from finetune.data.prepare import cache_removal
from finetune.data.prepare.cache import cache_folder, digest, publish
from finetune.errors import UserError


def put(text):
    return lambda folder: (folder / "x").write_text(text)


def test_an_entry_is_written_once(cache):
    assert cache_folder() == cache
    assert (publish("kind", "key", put("one")) / "x").read_text() == "one"
    assert (publish("kind", "key", put("two")) / "x").read_text() == "one"


def test_a_writer_that_fails_leaves_nothing(cache):
    def fail(folder):
        put("half")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish("kind", "key", fail)
    assert list((cache / "kind").iterdir()) == []


def test_the_first_of_two_writers_wins(cache):
    def slow(folder):
        publish("kind", "key", put("first"))
        put("second")(folder)

    assert (publish("kind", "key", slow) / "x").read_text() == "first"
    assert [entry.name for entry in (cache / "kind").iterdir()] == ["key"]


def test_old_and_incomplete_entries_are_removed(cache, monkeypatch):
    monkeypatch.setattr(cache_removal, "PRUNE_SECONDS", 0.0)
    old, half, young = publish("kind", "old", put("")), cache / "kind" / "k.incomplete-x", publish("kind", "a", put(""))
    half.mkdir()
    os.utime(old, (0, time.time() - cache_removal.UNUSED_SECONDS - 9))
    os.utime(half, (0, time.time() - cache_removal.ABANDONED_SECONDS - 9))
    publish("kind", "new", put(""))
    assert sorted(entry.name for entry in young.parent.iterdir()) == ["a", "new"]


def test_an_entry_in_use_stays_young(cache):
    entry = publish("kind", "key", put(""))
    os.utime(entry, (0, 0))
    publish("kind", "key", put(""))
    assert time.time() - entry.stat().st_mtime < 60


def test_a_full_disk_is_reported_and_leaves_nothing(cache):
    def fill(folder):
        with Path("/dev/full").open("wb", buffering=0) as full:  # a real ENOSPC
            full.write(b"x")

    with pytest.raises(UserError, match="disk is full") as error:
        publish("kind", "key", fill)
    assert "XDG_CACHE_HOME" in error.value.remedy and str(cache) in error.value.where
    assert list((cache / "kind").iterdir()) == []


def test_a_cache_that_cannot_be_created_is_reported(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written") as error:
        publish("kind", "key", put(""))
    assert "XDG_CACHE_HOME" in error.value.remedy


@pytest.mark.parametrize("home", ["/proc/absent", "loop"])
def test_a_cache_whose_folder_cannot_be_made_is_reported_whatever_the_reason(home, monkeypatch, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    with pytest.raises(UserError, match="the cache of converted data cannot be written: ") as error:
        publish("kind", "key", put(""))
    assert "XDG_CACHE_HOME" in error.value.remedy and home in error.value.where


def test_other_errors_are_not_changed():
    def broken(folder):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        publish("kind", "key", broken)


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
