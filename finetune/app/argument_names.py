"""Messages of commands in the words of Python: where a command says --top-k, a caller of finetune.load says top_k."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from finetune.errors import FinetuneError

# Where the name of the argument is not that of the option, or of the key of a recipe.
NAMES = {
    "--max-new-tokens": "new_tokens",
    "--stop": "stops",
    "--trust-remote-code": "trust_remote_code=True",
    "--slices": "layers",
    "model.source": "source",
    "data.columns": "columns",
}
_COMMAND = re.compile(r"(finetune [a-z]+ [^;,.]*)")  # is run as it is
_CHECKPOINT = re.compile(r"--checkpoint ([^\s.]+)")
_NAMED = re.compile("|".join([*map(re.escape, NAMES), r"--[a-z][a-z-]*[a-z]"]))


def in_arguments(text: str) -> str:
    """The text with arguments in place of options and of keys of a recipe.

    >>> in_arguments("Leave out --top-p, or merge it: finetune export RUN --merge")
    'Leave out top_p, or merge it: finetune export RUN --merge'
    """
    parts = _COMMAND.split(text)
    parts[::2] = [_NAMED.sub(_argument, _CHECKPOINT.sub(r'checkpoint="\1"', part)) for part in parts[::2]]
    return "".join(parts)


@contextmanager
def speaking_of_arguments() -> Iterator[None]:
    """A context whose errors speak of arguments."""
    try:
        yield
    except FinetuneError as error:
        error.what, error.where, error.remedy = map(in_arguments, (error.what, error.where, error.remedy))
        error.args = (error.what,)
        raise


def _argument(found: re.Match[str]) -> str:
    return NAMES.get(found[0], found[0].removeprefix("--").replace("-", "_"))
