"""Proves that a rank's report of its failure has its space reserved, and that nothing of it is left to be taken for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.distributed.failure import Failure, clear_failures, describe_failure, read_failures, write_failure

SCRIPT = """
import sys
from pathlib import Path
from finetune.distributed.failure import read_failures, report_failures
from finetune.errors import UserError
logs = Path(sys.argv[1])
with report_failures(1, logs, supervised=sys.argv[2] == "supervised"):
    print(sorted(path.name for path in logs.iterdir()), len(read_failures(logs)))
    {body}
"""
FAILS = "raise UserError('the data is gone', where='data.csv')"


def rank_1(logs: Path, body: str, supervised: bool = False) -> subprocess.CompletedProcess[str]:
    """Of two ranks; no torch."""
    words = [sys.executable, "-c", SCRIPT.format(body=body), str(logs), "supervised" if supervised else "alone"]
    places = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **places})


ON_GPU = (
    "CUDA out of memory. Tried to allocate 546.00 MiB. GPU 0 has a total capacity of 15.77 GiB of which 14.19 MiB is free. "
    "Of the allocated memory {used} is allocated by PyTorch, with 46.00 MiB allocated in private pools (e.g., CUDA Graphs), "
    "and {idle} is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting ..."
)


@pytest.mark.parametrize(
    ("used", "idle", "setting", "share"),
    [
        ("9.00 GiB", "3.00 GiB", "", "25%"),
        ("9.00 GiB", "3.00 GiB", "max_split_size_mb:512", "25%"),
        ("9.00 GiB", "3.00 GiB", "expandable_segments:True", ""),
        ("9.00 GiB", "3.00 GiB", "expandable_segments:False", ""),
        ("13.73 GiB", "736.86 MiB", "", ""),
    ],
)
def test_memory_in_pieces_is_named(used: str, idle: str, setting: str, share: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", setting)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    remedy = describe_failure(RuntimeError(ON_GPU.format(used=used, idle=idle)), 0, tmp_path / "log").remedy
    assert "parallel.micro_batch" in remedy
    assert ("expandable_segments:True" in remedy) is bool(share) and share in remedy


def old_failure(logs: Path, rank: int) -> None:
    write_failure(logs, Failure(rank, 1.0, "an earlier start", "", "", 1, False))


def test_space_is_reserved_and_given_back(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    ended = rank_1(logs, "assert (logs / '.failure-rank-00001.json').stat().st_size == 4096")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "['.failure-rank-00001.json'] 0\n", "what is reserved is no failure"
    assert list(logs.iterdir()) == []


@pytest.mark.parametrize("supervised", [True, False])
def test_a_failure_takes_the_reserved_place(tmp_path: Path, supervised: bool) -> None:
    ended = rank_1(tmp_path, FAILS, supervised)
    assert ended.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["failure-rank-00001.json"]
    assert json.loads((tmp_path / "failure-rank-00001.json").read_text())["what"] == "the data is gone"
    assert ended.stderr == ("" if supervised else "error: data.csv: the data is gone\n")


def test_a_rank_that_only_lost_another_says_so_in_plain_words(tmp_path: Path) -> None:
    ended = rank_1(
        tmp_path, "raise RuntimeError('[/pytorch/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:9')"
    )
    assert ended.returncode == 1
    said = ended.stderr[ended.stderr.index("error: ") :]
    assert said.startswith("error: rank 1: another rank ended, and did not say why\n") and "gloo" not in said
    assert "The launcher reports how it ended. Run the same command again; a training resumes" in said
    assert read_failures(tmp_path)[0].echo


def test_what_an_earlier_start_left_is_not_this_ones_failure(tmp_path: Path) -> None:
    """Rank 1's own, and that of a rank which there is no more; an earlier one always seems to be the first."""
    for rank in (1, 3):
        old_failure(tmp_path, rank)
    ended = rank_1(tmp_path, FAILS)
    assert ended.stderr == "error: data.csv: the data is gone\n"
    assert [one.what for one in read_failures(tmp_path)] == ["an earlier start", "the data is gone"]


def test_before_a_start_everything_of_an_earlier_one_is_removed(tmp_path: Path) -> None:
    old_failure(tmp_path, 0)
    (tmp_path / ".failure-rank-00007.json").write_text(" ")  # of a rank that was killed
    (tmp_path / "rank-0.log").touch()
    clear_failures(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0.log"]
