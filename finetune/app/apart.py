"""Run a function in a child of this process, as if it ran here: errors, Ctrl-C and SIGTERM are this process's own.

The memory of the child is returned when it ends, and what it imports does not slow this process down.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from finetune.distributed.bytecode import bytecode_variables
from finetune.distributed.quick_imports import quick_imports
from finetune.distributed.rank_ends import describe_end
from finetune.distributed.stop_signals import signals_handled
from finetune.ending import die_with_parent
from finetune.errors import FinetuneError, Stopped, TrainingFailed, UserError, is_failure
from finetune.recipe.machine import lacks_memory, memory_limit
from finetune.recipe.targets import load_target
from finetune.terminal import lasting_streams

PATIENCE = 1.0  # seconds between asking the child to end and ending it
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}  # before the child imports anything


def run_apart(target: str, *arguments: Any, doing: str) -> Any:
    """The value of the function `target` ("package.module:name") of picklable arguments, called in a new process.

    doing: for messages, such as "prepares the data".
    Raises: what the function raises; KeyboardInterrupt on Ctrl-C, Stopped on SIGTERM: the child has ended by then;
    TrainingFailed if the child is killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, target, arguments))
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    with signals_handled(note):
        with _environment({**ENVIRONMENT, **bytecode_variables(os.environ)}), _deaf_children():
            process.start()
        sender.close()
        try:
            while not receiver.poll(0.1) and not asked:
                pass
            outcome = None if asked else receiver.recv()
        except EOFError:
            outcome = None
        finally:
            if asked:
                process.terminate()
                process.join(PATIENCE)
                process.kill()
            process.join()
    if asked:
        if signal.SIGINT in asked:
            raise KeyboardInterrupt
        raise Stopped(f"the process that {doing} was stopped; run the same command to continue")
    if outcome is None:
        raise _unexplained(process.exitcode or 0, doing)
    done, value = outcome
    if not done:
        raise value
    return value


def _unexplained(code: int, doing: str) -> FinetuneError:
    remedy = " ".join(filter(None, (memory_limit(), "Run the same command to continue where it was.")))
    return TrainingFailed(f"the process that {doing} {describe_end(code)}", remedy=remedy)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started inside get no SIGINT: it would be a traceback, as long as they import."""
    resource_tracker.ensure_running()  # otherwise started by the first child, and SIGINT unblocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """These variables for a process that is started inside; those that are set already stay."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _portable(error: BaseException) -> BaseException:
    """The exception as another process can raise it, with its traceback as a note."""
    if lacks_memory(error) and not isinstance(error, FinetuneError):
        remedy = memory_limit() or "Take a machine with more memory, fewer workers, or smaller sizes in the recipe."
        return TrainingFailed(f"not enough memory ({type(error).__name__}: {error})", remedy=remedy)
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of a library that does not survive
        other = RuntimeError(f"{type(error).__name__}: {error}")
        other.add_note(error.__notes__[-1])
        return other
    return error


def _run(sender: Any, target: str, arguments: tuple[Any, ...]) -> None:
    """In the child. Ctrl-C is its parent's to decide; SIGTERM, which it also gets at the end of its parent, ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    try:
        with lasting_streams():
            with quick_imports():
                function = load_target(target)
            outcome: tuple[bool, Any] = (True, function(*arguments))
    except FinetuneError as error:
        outcome = (False, error)
    except OSError as error:
        if error.errno is None or lacks_memory(error):
            outcome = (False, _portable(error))
        else:
            outcome = (False, UserError(error.strerror or str(error), where=str(error.filename or "")))
    except BaseException as error:  # its parent reports it
        if not is_failure(error):
            raise
        outcome = (False, _portable(error))
    sender.send(outcome)
    sender.close()
