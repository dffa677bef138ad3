"""Proves how many cores and how much memory a process believes it may use: in trees of both versions of control groups as
containers and services see them, and under an affinity mask that a real process has. And nobody else counts cores.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.recipe import quotas
from tests.unit.test_floors import FILES

GIB = 1 << 30
CORES = 8  # of the machine
DOCKER = "docker/4f5d"  # where a group lies outside of the container, which does not see that path

CASES: dict[str, tuple[str, dict[str, str], int]] = {
    # own groups, files of the tree, cores
    "version 2, in a container": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    "version 2, no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, CORES),
    "version 2, half a core": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    "version 2, 2.5 cores": ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
    "version 2, more than the machine has": ("0::/\n", {"cpu.max": "6400000 100000\n"}, CORES),
    "version 2, a service with the limit of its slice": (
        "0::/system.slice/run.service\n",
        {"system.slice/cpu.max": "300000 100000\n", "system.slice/run.service/cpu.max": "max 100000\n"},
        3,
    ),
    "version 2, the path of outside": (f"0::/{DOCKER}\n", {"cpu.max": "200000 100000\n"}, 2),
    "version 1, in a container": (
        f"4:memory:/{DOCKER}\n3:cpu,cpuacct:/{DOCKER}\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        4,
    ),
    "version 1, no limit": (
        "3:cpu,cpuacct:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        CORES,
    ),
    "version 1, a job of its own": (
        "3:cpuset:/x\n2:cpu:/slurm/job_7\n",
        {"cpu/slurm/job_7/cpu.cfs_quota_us": "150000\n", "cpu/slurm/job_7/cpu.cfs_period_us": "50000\n"},
        3,
    ),
    "no control groups": ("", {}, CORES),
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lays out control groups: (own groups, path -> text)."""

    def lay_out(own: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(text)
        if own:
            (tmp_path / "own").write_text(own)

    monkeypatch.setattr(quotas, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(quotas, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(quotas.os, "sched_getaffinity", lambda process: set(range(CORES)))
    return lay_out


@pytest.mark.parametrize("name", CASES)
def test_cores_of_a_container(name: str, tree) -> None:
    own, files, cores = CASES[name]
    tree(own, files)
    assert quotas.available_cores() == cores
    assert quotas.threads_each(2) == max(1, cores // 2) and quotas.threads_each(100) == 1


def test_memory_of_a_container(tree) -> None:
    assert quotas.group_memory() is None
    tree("0::/\n", {"memory.max": "max\n", "memory.current": f"{GIB}\n"})
    assert quotas.group_memory() is None
    tree("0::/\n", {"memory.max": f"{4 * GIB}\n", "memory.stat": f"anon 7\ninactive_file {GIB // 2}\n"})
    assert quotas.group_memory() == 3 * GIB + GIB // 2
    first = {"memory.limit_in_bytes": f"{2 * GIB}\n", "memory.usage_in_bytes": f"{GIB}\n"}
    tree("4:memory:/a\n0::/\n", {f"memory/a/{name}": text for name, text in first.items()})
    assert quotas.group_memory() == GIB
    tree("4:memory:/a\n0::/\n", {"memory/a/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 4}\n"})
    assert quotas.group_memory() == GIB + GIB // 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks on this system")
def test_a_process_pinned_to_one_core_uses_one_thread() -> None:
    """What torch computes with as well, though the machine has more."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from finetune.recipe.quotas import available_cores, threads_each\n"
        "import torch; torch.set_num_threads(5)\n"
        "from finetune.models.device import share_cores; share_cores(1)\n"
        "print(available_cores(), threads_each(1), torch.get_num_threads())\n"
        "os.environ['OMP_NUM_THREADS'] = '4'; torch.set_num_threads(4); share_cores(1); print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != quotas.THREADS}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "1", "4"]


def test_nobody_else_counts_cores() -> None:
    counting = re.compile(r"cpu_count|sched_getaffinity|cfs_quota|cpu\.max")
    found = [path.name for path in FILES if counting.search(path.read_text(encoding="utf-8"))]
    assert found == ["quotas.py"]
