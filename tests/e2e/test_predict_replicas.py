"""Proves on real processes that a replica whose ranks are killed starts again alone, and that the output has the same bytes."""

import json
import os
import random

import pytest

from tests.distributed.test_slices import PROMPTS, write_model
from tests.faults import ROOT, run_finetune

pytestmark = pytest.mark.timeout(600)
MINUTES = 240
# What Python runs at its start: ranks kill themselves by SIGKILL at their third batch, when it is their turn. A follower (rank
# 3) is the first; then the leader of the other replica, once replica 1 is back; then both ranks of replica 1, once replica 0
# is back.
DIES = """
import os, signal, time
from pathlib import Path
if "FINETUNE_REPLICA" in os.environ:
    from finetune.distributed.folder_store import FolderStore
    from finetune.distributed.replica_place import ReplicaPlace, rank_number
    from finetune.inference.batches import BatchAnswerer
    from finetune.inference.prediction.board import count_chunks
    place, rank, batches = ReplicaPlace.from_environ(), rank_number(), 0
    store, real = FolderStore(Path(place.folder)), BatchAnswerer._answer
    waits_for = {(3, 0): None, (0, 0): (1, 1), (2, 1): (0, 1), (3, 1): (0, 1)}  # (rank, attempt): (replica, attempt)
    def answer(self, batch, *rest):
        global batches
        batches += 1
        if batches == 3 and (rank, place.attempt) in waits_for:
            other = waits_for[rank, place.attempt]
            while other is not None and not count_chunks(store, *other)[1]:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, batch, *rest)
    BatchAnswerer._answer = answer
"""


def test_a_follower_then_a_leader_then_a_whole_replica_is_killed(tmp_path, finetune):
    write_model(tmp_path / "model", replies=False)
    draw = random.Random(3)
    texts = [" ".join(draw.choices(PROMPTS, k=draw.randint(1, 3))) for _ in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["predict", "model", "--data", "rows.jsonl", "--budget", "64", "--slices", "2", "--output"]
    whole = finetune(*words, "whole.jsonl", "--processes", "2", folder=tmp_path)
    assert whole.code == 0, whole.output
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(DIES)
    path = {"PYTHONPATH": os.pathsep.join((str(tmp_path / "patch"), str(ROOT)))}
    killed = run_finetune([*words, "killed.jsonl", "--processes", "4"], MINUTES, folder=tmp_path, environment=path)
    assert killed.code == 0, killed.output
    told = [line for line in killed.output.splitlines() if line.startswith(("rank", "replica"))]
    assert [line.split(" starts again")[0] for line in told if "starts again" in line] == [
        "replica 1 (ranks 2 and 3)", "replica 0 (ranks 0 and 1)", "replica 1 (ranks 2 and 3)"
    ], killed.output  # fmt: skip
    assert all("1 chunk that it held will be answered again (2 restarts left)" in line for line in told[1::2]), told
    assert [line.partition(":")[0] for line in told[:3:2]] == ["rank 3", "rank 0"] and "SIGKILL" in told[0]
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not list((tmp_path / "killed.jsonl.parts").glob("window-*"))
