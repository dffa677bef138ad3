"""Proves that what the system refuses is told in a sentence, also where a library passes it on in words."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from finetune.data.bad_rows import BadRow
from finetune.data.prepare import cache
from finetune.errors import UserError, check_current_folder, fault_of_limit, system_error
from finetune.inference.prediction.feeder import map_together
from finetune.tasks.text.drafts import _encode


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EMFILE, "Too many open files"), errno.EMFILE),
        (Exception("File too large (os error 27)"), errno.EFBIG),
        (RuntimeError("SafetensorError: No space left on device"), errno.ENOSPC),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]), errno.ENOSPC),
    ],
)
def test_the_number_is_found_in_words(error: Exception, number: int) -> None:
    assert system_error(error) == number
    fault = fault_of_limit(error)
    assert fault is not None and fault.what.startswith(os.strerror(number).lower()) and fault.remedy.endswith(".")


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError("x"), OSError(errno.ENOENT, "No such file"), Exception("os error 2")]
)
def test_other_errors_are_none_of_them(error: Exception) -> None:
    assert fault_of_limit(error) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Exception("No space left on device (os error 28)"), "the disk is full"),
        (shutil.Error([("a", "b", "[Errno 27] File too large: 'a'")]), "File too large"),
    ],
)
def test_the_cache_says_what_a_library_could_not_write(tmp_path, monkeypatch, error: Exception, words: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def write(folder):
        raise error

    with pytest.raises(UserError, match=words):
        cache.publish("kind", "key", write)
    with pytest.raises(ZeroDivisionError):
        cache.publish("kind", "key", lambda folder: 1 // 0)


class PanicException(BaseException):
    """What the bindings of a library in Rust raise."""


def test_a_panic_of_a_library_ends_its_row_alone() -> None:
    def work(items):
        if "bad" in items:
            raise PanicException("retry-limit-in-match over")
        return [item.upper() for item in items]

    one, bad, other = map_together(["a", "bad", "c"], work)
    assert (one, other) == ("A", "C") and isinstance(bad, BadRow) and "retry-limit" in str(bad)

    def interrupt(items):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_together(["a"], interrupt)


def test_a_text_at_which_the_tokenizer_panics_is_a_bad_row() -> None:
    def tokenizer(texts, **options):
        if "bad" in texts:
            raise PanicException("retry-limit-in-match over")
        return {"input_ids": [[1]] * len(texts), "offset_mapping": [[(0, 1)]] * len(texts)}

    good, bad = _encode(tokenizer, ["a", "bad"], True)
    assert good == ([1], [(0, 1)]) and isinstance(bad, BadRow)


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch) -> None:
    check_current_folder()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="was removed"):
        check_current_folder()
