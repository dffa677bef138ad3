"""Proves that ranks share a counter without a collective: every number is given once, with either kind of store."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from finetune.distributed import group_store
from finetune.distributed.failure import PeerFailed
from finetune.distributed.group_store import GroupStore
from finetune.distributed.session import Session

PULLS = 200


def pull():
    session = Session.open(None, precision="fp32", cpu=True)
    store = session.store
    own = [store.count("ticket") for _ in range(PULLS // (1 + session.rank))]  # unequal: no rank waits for another
    store.announce(f"end/{session.rank}", "\u00e4" * session.rank)
    session.wait()
    said = [store.announced(f"end/{rank}") for rank in (0, 1, 2)]
    return own, store.count("ticket", 0), said, store.count("other", 5)


def test_ranks_count_together(ranks):
    (first, total, said, _), (second, *rest, _) = ranks.run(2, pull)
    assert sorted(first + second) == list(range(1, PULLS + PULLS // 2 + 1))
    assert first and second and [total, said] == rest == [300, ["", "\u00e4", None]]


@pytest.mark.parametrize("kind", ["tcp", "file"])
def test_threads_of_a_rank_count_too(kind, monkeypatch, tmp_path):
    if kind == "tcp":
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))
    else:
        store = dist.FileStore(str(tmp_path / "store"), 1)
    monkeypatch.setattr(group_store, "_get_default_store", lambda: store)
    shared = GroupStore(1)
    assert shared.announced("x") is None and shared.count("n", 0) == 0
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(shared.count("n") for _ in range(100))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 301))
    shared.announce("x", "1")
    shared.announce("x", "2")
    assert shared.announced("x") == "2"


class Gone:
    """A store whose process was killed."""

    def add(self, *given):
        raise RuntimeError("Failed to recv, got 0 bytes")

    check = set = add


def test_a_store_that_is_gone_is_the_failure_of_a_peer(monkeypatch):
    monkeypatch.setattr(group_store, "_get_default_store", Gone)
    shared = GroupStore(1)
    for call in (
        lambda: shared.count("n"),
        lambda: shared.announce("n", "1"),
        lambda: shared.announced("n"),
    ):
        with pytest.raises(PeerFailed, match="rank 0"):
            call()
