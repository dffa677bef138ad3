"""Groups of `finetune verify`, one after the other in the same processes."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from finetune.distributed import process_state

GROUPS = 4
SECONDS = 0.1


class SlowStore(dist.Store):
    """A store whose reader comes late to each of its connections."""

    def __init__(self, store):
        super().__init__()
        self._store = store

    def get(self, key):
        time.sleep(SECONDS)
        return self._store.get(key)

    def set(self, key, value):
        self._store.set(key, value)

    def add(self, key, amount):
        return self._store.add(key, amount)

    def wait(self, keys, timeout=timedelta(seconds=10)):
        self._store.wait(keys, timeout)

    def check(self, keys):
        return self._store.check(keys)


def meet_and_leave(folder, rank, ranks):
    """The last rank is slow; all leave at once, as they do where a layout is refused before anything is computed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_state, "WAIT", timedelta(seconds=10))
        if rank == ranks - 1:
            store = dist.FileStore
            patch.setattr(dist, "FileStore", lambda path, count: SlowStore(store(path, count)))
        for number in range(GROUPS):
            process_state.meet(Path(folder) / f"meeting-{number}", rank, ranks)
            dist.destroy_process_group()
    return rank


def join(folder):
    return meet_and_leave(folder, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def test_no_rank_leaves_a_group_that_another_still_joins(ranks, tmp_path):
    assert ranks.options(open_group=False, timeout=90).run(3, join, str(tmp_path)) == [0, 1, 2]
