"""Errors as people read them: what, where, why, and what to do. No torch here."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, the same command resumes
EXIT_INTERRUPTED = 130  # by Ctrl-C, at once
DIVERGED, DISK_FULL = (
    "diverged",
    "disk_full",
)  # a loss or gradient norm that is not finite; no space for what a run writes


class FinetuneError(Exception):
    """A failure that is reported without a traceback.

    what: one sentence. where: file:line, row, rank or step. remedy: what to do about it.
    trace: traceback of what a library raised, where the fault may be this program's after all; it is kept in a file or log.
    kind: of a failure that somebody may want to be alerted to apart from others: DIVERGED, DISK_FULL, "" for the rest.
    """

    exit_code = EXIT_FAILED

    def __init__(self, what: str, *, where: str = "", remedy: str = "", trace: str = "", kind: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.remedy, self.trace, self.kind = what, where, remedy, trace, kind

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  {self.remedy}" if self.remedy else head

    def __reduce__(self):  # crosses process borders whole
        return (_rebuild, (type(self), self.what, self.where, self.remedy, self.trace, self.kind))


def _rebuild(cls: type[FinetuneError], what: str, where: str, remedy: str, trace: str, kind: str = "") -> FinetuneError:
    error = cls.__new__(cls)
    FinetuneError.__init__(error, what, where=where, remedy=remedy, trace=trace, kind=kind)
    return error


class UserError(FinetuneError):
    """The user's mistake (recipe, data, command line): exit code 2, nothing was started or lost."""

    exit_code = EXIT_USER


class EmptyData(UserError):
    """A source without a single row. Training needs rows; a prediction of none is an empty output."""


class TrainingFailed(FinetuneError):
    """Training cannot go on (NaN loss, full disk, a rank died): exit code 1, the last good checkpoint stays."""


class Halted(FinetuneError):
    """Something a person must look at before the same command can go on (full disk, too many bad rows): exit code 1, what
    is done stays, and it is not restarted automatically.
    """


class Stopped(FinetuneError):
    """Stopped on request after a checkpoint was written: exit code 75, the same command resumes."""

    exit_code = EXIT_STOPPED


@dataclass(frozen=True)
class Fault:
    """One mistake in a recipe. where: "file.yaml:12" or "--set training.epochs"; key: "training.epochs".

    depends_on: other keys whose values it rests on: where one of them is a fault itself, this one may only follow.
    """

    where: str
    key: str
    message: str
    value: str = ""
    allowed: str = ""
    nearest: str = ""
    depends_on: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = self.where.endswith(f" {self.key}")  # "--set training.epochs" names its key already
        parts = [f"{self.where}: {self.message}" if named else f"{self.where}: {self.key}: {self.message}"]
        if self.value:
            parts.append(f"    value    {self.value}")
        if self.allowed:
            parts.append(f"    allowed  {self.allowed}")
        if self.nearest:
            parts.append(f"    did you mean  {self.nearest}")
        return "\n".join(parts)


class RecipeFaults(UserError):
    """Every fault of a recipe at once: one round trip for the user, not five."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        super().__init__(f"{count} fault{'s' if count != 1 else ''} in the recipe\n" + "\n".join(map(str, self.faults)))


# What the system says of a path, rather than of a fault of ours: of the path itself, or of what there is.
ODD_PATH = frozenset((errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR))
ERRORS_OF_PATHS = ODD_PATH | {errno.EACCES, errno.ENOENT, errno.ENOSPC, errno.EPERM, errno.EROFS}


def fault_of_path(error: BaseException, kinds: frozenset[int] = ERRORS_OF_PATHS) -> UserError | None:
    """What is wrong with a file or folder that the system refuses; None for other errors."""
    if isinstance(error, OSError) and isinstance(error.filename, str) and error.errno in kinds:
        return UserError(f"cannot be used: {error.strerror}", where=error.filename)
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):  # of pathlib
        return UserError("cannot be used: a link that leads to itself", where=str(error).split("'")[1])
    return None


_ERRNO_IN_WORDS = re.compile(r"os error (\d+)|\[Errno (\d+)\]|(No space left on device)")
LIMITS = {
    errno.EMFILE: "Each process may have few files open here: raise the limit (ulimit -n).",
    errno.ENFILE: "The system has too many files open.",
    errno.EFBIG: "Files may not be larger here: raise the limit (ulimit -f), or use another disk.",
    errno.ENOSPC: "Free some space, or use another disk.",
    errno.EDQUOT: "Free some space, or use another disk.",
}


def system_error(error: BaseException) -> int | None:
    """The number of the system's error behind an exception, also where a library passes it on in words, as safetensors,
    tokenizers and shutil do; None for another exception.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = _ERRNO_IN_WORDS.search(str(error))
    return None if match is None else errno.ENOSPC if match[3] else int(match[1] or match[2])


def fault_of_limit(error: BaseException) -> TrainingFailed | None:
    """The error for files or disks that a library could not have more of; None for other errors."""
    number = system_error(error)
    if number not in LIMITS:
        return None
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    return TrainingFailed(f"{os.strerror(number).lower()} ({type(error).__name__}: {reason})", remedy=LIMITS[number])


def check_current_folder() -> None:
    """Raises: UserError if somebody has removed the folder that this process is in, so that no relative path leads anywhere."""
    try:
        os.getcwd()  # noqa: PTH109 - pathlib says the same
    except FileNotFoundError:
        raise UserError("the current folder was removed", remedy="Change to a folder that exists.") from None


def is_failure(error: BaseException) -> bool:
    """Whether an exception says that a computation failed, rather than that the process is to end: an Exception, or the panic
    of a library written in Rust, which Python's bindings raise as a BaseException of their own.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
