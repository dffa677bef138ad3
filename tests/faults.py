"""Faults on purpose: a real `finetune` to signal or kill at a chosen moment, a disk that fills up, a flipped bit.

with start_finetune(["train", "recipes/x.yaml", "--run-dir", str(folder)]) as running:
    with kill_after(lambda: running.rank(1).pid, when=file_appears(folder, "**/manifest.json")):
        assert running.wait(60).code == 1
assert not running.survivors()
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from finetune.distributed.forking import NAME_OF_RANK
from finetune.distributed.replica_place import ReplicaPlace

ROOT = Path(__file__).resolve().parents[1]
MARK = "FINETUNE_TEST_RUN"  # in the environment of every process of a run, however it was started or orphaned

LAUNCHER_WORDS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Finished:
    """How a run ended. code: the exit code, or minus the signal. output: stdout and stderr as they came."""

    code: int
    output: str
    seconds: float


class Running:
    """A started run, in a session of its own, with a file that collects what it prints."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this object)
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            list(command),
            cwd=folder,
            env={**environment, MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def output(self) -> str:
        """What it printed so far. Read at a position: the run writes at the file's own, which it shares."""
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size, 0).decode(errors="replace")

    def survivors(self) -> list[psutil.Process]:
        """All living processes of this run, the first one included; zombies do not count."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes that work as ranks now: the oldest of each RANK, for a rank's own children inherit it."""
        found: dict[int, psutil.Process] = {}
        for process in sorted(self.survivors(), key=lambda process: process.create_time()):
            with suppress(psutil.Error):
                name, environment = process.name(), process.environ()
                rank = name.removeprefix(NAME_OF_RANK) if name.startswith(NAME_OF_RANK) else environment.get("RANK", "")
                place = ReplicaPlace.from_environ(environment)
                if rank.isdigit() and not (place and place.is_reader):
                    found.setdefault(int(rank) + (place.first if place else 0), process)
        return found

    def rank(self, number: int, timeout: float = 60) -> psutil.Process:
        """The process of one rank, as soon as it is there."""
        end = time.monotonic() + timeout
        while (process := self.ranks().get(number)) is None:
            if self.process.poll() is not None:
                raise AssertionError(f"the run ended before rank {number} was seen:\n{self.output()}")
            if time.monotonic() > end:
                raise AssertionError(f"no rank {number} after {timeout:.0f} s:\n{self.output()}")
            time.sleep(0.05)
        return process

    def send(self, number: int, rank: int | None = None) -> None:
        """A signal to the process that was started, or to one of its ranks."""
        if rank is None:
            self.process.send_signal(number)
        else:
            self.rank(rank).send_signal(number)

    def wait(self, timeout: float) -> Finished:
        """Wait for the end. A run that takes longer is killed, and fails the test with its output."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {timeout:.0f} s; its output:\n{self.output()}") from None
        return Finished(code, self.output(), time.monotonic() - self.started)

    def kill(self) -> None:
        """End whatever is left, at once. Survivors are asked for again, for a dying launcher may have started more."""
        while survivors := self.survivors():
            for process in survivors:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(survivors, timeout=5)
        self.process.wait()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def start_finetune(
    args: Sequence[str],
    *,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = (sys.executable, "-m", "finetune"),
) -> Running:
    """Start `python -m finetune ARGS` in a folder, without this process's RANK and the like. Use it as a context."""
    return Running([*program, *args], folder, surroundings(environment or {}))


def surroundings(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a `finetune` of this checkout: without this process's RANK and the like, and without a GPU."""
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER_WORDS}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    cpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **cpu, **more}


def run_finetune(args: Sequence[str], timeout: float = 120, **options: object) -> Finished:
    """`start_finetune`, and wait for its end. Nothing of it is left behind."""
    with start_finetune(args, **options) as running:  # type: ignore[arg-type]
        return running.wait(timeout)


@contextmanager
def kill_after(
    target: int | Callable[[], int],
    *,
    when: Callable[[], object],
    seconds: float = 0.0,
    number: int = signal.SIGKILL,
    timeout: float = 120,
) -> Iterator[threading.Event]:
    """While the block runs: wait until `when()` is true, then `seconds` more, then signal the process `target`.

    Yields an event that is set once the signal was sent. A block that ends by itself before, fails: the fault that the
    test is about never happened.
    """
    fired, over, errors = threading.Event(), threading.Event(), []

    def watch() -> None:
        end = time.monotonic() + timeout
        while not over.is_set() and time.monotonic() < end:
            if when():
                over.wait(seconds)
                try:
                    os.kill(target() if callable(target) else target, number)
                    fired.set()
                except Exception as error:  # told below, in the test's own thread
                    errors.append(error)
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield fired
    finally:
        over.set()
        watcher.join()
    if not fired.is_set():
        raise AssertionError(f"signal {number} was not sent: {errors or 'its moment never came'}")


def file_appears(folder: Path, pattern: str, count: int = 1) -> Callable[[], bool]:
    """For `when`: at least `count` paths match, such as file_appears(run, "checkpoints/step-*", 2)."""
    return lambda: sum(1 for _ in folder.glob(pattern)) >= count


def text_appears(path: Path, text: str) -> Callable[[], bool]:
    """For `when`: a file holds a text, such as '"step": 7' in metrics.jsonl."""
    return lambda: path.is_file() and text in path.read_text(errors="replace")


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of that size at `folder`, empty, gone afterwards. Skips the test where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small disk is a tmpfs mount: needs root on Linux")
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk is a tmpfs mount, refused here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def flip_bit(path: Path, at: float = 0.5) -> None:
    """Flip one bit in the middle of a file, or at another share of its length; size and time stay as they were."""
    times = path.stat()
    with path.open("r+b") as file:
        offset = min(int(times.st_size * at), times.st_size - 1)
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
