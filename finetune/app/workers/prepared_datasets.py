"""The encoded splits of an entry as two files: pickled objects, and their arrays, which ranks map rather than read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np

from finetune.errors import UserError
from finetune.tasks.task import Datasets

OBJECTS, ARRAYS = "datasets.pickle", "arrays.bin"
ALIGNMENT = 64  # bytes, of arrays in arrays.bin


def write_datasets(folder: Path, datasets: Datasets) -> None:
    """datasets.pickle, and arrays.bin with its arrays one behind the other, each with its size before it."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(datasets, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    with (folder / ARRAYS).open("wb") as file:
        for view in views:
            file.write(view)
            file.write(bytes(-view.nbytes % ALIGNMENT))
    (folder / OBJECTS).write_bytes(pickle.dumps(([view.nbytes for view in views], text)))


def load_datasets(folder: Path) -> Datasets:
    """Split name -> examples; their arrays are read-only views of the mapped file.

    Raises: UserError if another user owns the file: pickles run code.
    """
    owner = (folder / OBJECTS).stat().st_uid
    if hasattr(os, "getuid") and owner not in (os.getuid(), 0):
        raise UserError(
            "the prepared data in the cache belongs to another user",
            where=str(folder),
            remedy="Set XDG_CACHE_HOME to a folder of your own.",
        )
    sizes, text = pickle.loads((folder / OBJECTS).read_bytes())
    path = folder / ARRAYS
    mapped = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    views, start = [], 0
    for size in sizes:
        views.append(mapped[start : start + size].data)
        start += size + -size % ALIGNMENT
    datasets: Datasets = pickle.loads(text, buffers=views)
    return datasets
