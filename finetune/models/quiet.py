"""transformers and bitsandbytes without their own reports."""

from __future__ import annotations

import logging as python_logging
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_bitsandbytes() -> None:
    """Without its warning, on some processors, that a package which nothing here needs is missing. peft imports it."""
    python_logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(python_logging.ERROR)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own report and bar, which would come once per rank; what matters is in Loading."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
