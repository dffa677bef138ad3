"""Proves that a store in a folder gives every number once, whoever else uses it and whoever is killed meanwhile."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from finetune.distributed.folder_store import LINE, FolderStore

ROOT = Path(__file__).resolve().parents[3]
APPENDS = """
import sys
from pathlib import Path
from finetune.distributed.folder_store import FolderStore
store = FolderStore(Path(sys.argv[1]))
print("started", flush=True)
while True:
    store.append("list", sys.argv[2])
"""


def test_texts_and_lists(tmp_path):
    one, other = FolderStore(tmp_path), FolderStore(tmp_path)
    assert other.announced("a/b") is None
    one.announce("a/b", "first")
    one.announce("a/b", "second")
    assert other.announced("a/b") == "second"
    assert [one.append("list", "x"), other.append("list", "y"), one.append("list", "z", below=3)] == [0, 1, 2]
    assert other.append("list", "w", below=3) is None and other.append("list", "w", below=4) == 3
    assert one.entries("list") == ["x", "y", "z", "w"] and other.entries("list", 2) == ["z", "w"]
    assert one.entries("list", 9) == [] == one.entries("never")


def test_half_an_entry_is_none(tmp_path):
    store = FolderStore(tmp_path)
    store.append("list", "x")
    with (tmp_path / "list").open("ab") as file:
        file.write(b"y")  # of a process that died
    assert store.entries("list") == ["x"] and store.append("list", "z") == 1
    assert store.entries("list") == ["x", "z"] and (tmp_path / "list").stat().st_size == 2 * LINE


def test_every_number_once_by_threads_and_by_processes_that_are_killed(tmp_path):
    command = [sys.executable, "-S", "-c", APPENDS, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    others = [
        subprocess.Popen([*command, name], env=environment, stdout=subprocess.PIPE, text=True) for name in ("k1", "k2")
    ]
    store, found = FolderStore(tmp_path), []
    for process in others:
        assert process.stdout is not None and process.stdout.readline() == "started\n"

    def work(name: str) -> None:
        found.extend((store.append("list", name), name) for _ in range(500))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("t1", "t2")]
    for thread in threads:
        thread.start()
    for process in others:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    for thread in threads:
        thread.join()
    entries = store.entries("list")
    assert len(found) == 1_000 and all(entries[index] == name for index, name in found)
    assert set(entries) <= {"t1", "t2", "k1", "k2"}
