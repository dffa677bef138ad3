"""Proves that every launcher's environment gives the right place, and a broken one a message with its remedy."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetune.distributed.env import DistributedEnv, as_environ, first_host, from_environ
from finetune.errors import UserError

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h0", "MASTER_PORT": "29501"}
TORCHRUN = TORCH | {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
DEEPSPEED = TORCH | {"LOCAL_SIZE": "2", "CROSS_RANK": "1", "CROSS_SIZE": "2"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-gpu01-4242@1",
}
SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "11",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_STEP_NODELIST": "gpu[07-08,12]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, DistributedEnv(3, 4, 1, 2, "torchrun", "h0", 29501)),
        (TORCHRUN | {"ACCELERATE_MIXED_PRECISION": "no"}, DistributedEnv(3, 4, 1, 2, "accelerate", "h0", 29501)),
        (DEEPSPEED, DistributedEnv(3, 4, 1, 2, "deepspeed", "h0", 29501)),
        (TORCH | {"LOCAL_WORLD_SIZE": "2"}, DistributedEnv(3, 4, 1, 2, "environment", "h0", 29501)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, DistributedEnv(0, 1, 0, 1, "environment")),
        (OPENMPI | {"MASTER_PORT": "29502"}, DistributedEnv(1, 2, 1, 2, "mpirun", "127.0.0.1", 29502)),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "MASTER_PORT": "29503"},
            DistributedEnv(1, 2, 1, 2, "mpiexec", "127.0.0.1", 29503),
        ),
        (SRUN, DistributedEnv(9, 11, 1, 3, "srun", "gpu07", 15000 + 123456 % 15000)),
        (SRUN | {"SLURM_NODEID": "1", "SLURM_PROCID": "5"}, DistributedEnv(5, 11, 1, 4, "srun", "gpu07", 18456)),
        (SRUN | {"MASTER_ADDR": "ib0", "MASTER_PORT": "4000"}, DistributedEnv(9, 11, 1, 3, "srun", "ib0", 4000)),
        (SRUN | TORCHRUN, DistributedEnv(3, 4, 1, 2, "torchrun", "h0", 29501)),
        (SRUN | OPENMPI | {"MASTER_PORT": "5"}, DistributedEnv(1, 2, 1, 2, "mpirun", "127.0.0.1", 5)),
    ],
)
def test_each_launcher_gives_its_place(environment, expected):
    place = from_environ(environment)
    assert place == expected
    spoken = from_environ(as_environ(place))  # what srun or mpirun said survives the way through torch's words
    numbers = ("rank", "world_size", "local_rank", "local_world_size", "master_addr", "master_port")
    assert [getattr(spoken, name) for name in numbers] == [getattr(place, name) for name in numbers]


def test_slurm_falls_back_to_what_older_versions_set():
    old = {key: value for key, value in SRUN.items() if not key.startswith("SLURM_STEP_N")}
    del old["SLURM_STEP_TASKS_PER_NODE"]
    assert from_environ(old | {"SLURM_NTASKS_PER_NODE": "4"}) == DistributedEnv(9, 11, 1, 4, "srun", "10.0.0.1", 18456)
    assert from_environ(old | {"SLURM_NODELIST": "n[3-5]"}).master_addr == "n3"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"},  # a batch script
        SRUN | {"SLURM_STEP_ID": "4294967290"},  # salloc's interactive step
        SRUN | {"SLURM_JOB_NAME": "bash"},  # srun --pty bash
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # one task: it starts its own processes
        {"LOCAL_RANK": "0"},
    ],
)
def test_no_launcher_gives_none(environment):
    assert from_environ(environment) is None


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        (TORCHRUN | {"RANK": "4"}, "rank 4 does not exist among 4 ranks"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "local rank 2 does not exist among 2"),
        (TORCHRUN | {"RANK": "0"}, "local rank 1 is greater than rank 0"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "8 processes on this machine do not fit 4"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "the world size is 0"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a whole number"),
        (TORCH, "not how many of them run on this machine"),
        ({k: v for k, v in TORCHRUN.items() if k != "LOCAL_RANK"}, "LOCAL_RANK is not set"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"}, "MASTER_ADDR is not set"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_PORT"}, "MASTER_PORT is not set"),
        (OPENMPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, "several machines"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "many"}, "SLURM_STEP_TASKS_PER_NODE='many'"),
    ],
)
def test_a_broken_environment_says_what_and_the_remedy(environment, said):
    with pytest.raises(UserError) as caught:
        from_environ(environment)
    assert said in str(caught.value)
    assert caught.value.where and caught.value.remedy


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("gpu01", "gpu01"),
        ("gpu[01-03,07]", "gpu01"),
        ("gpu[07,01-03],cpu1", "gpu07"),
        ("cpu1,gpu[01-03]", "cpu1"),
        ("rack[2-3]n[05,09]-ib", "rack2n05-ib"),
        ("node-a-[3-4]", "node-a-3"),
        ("", ""),
    ],
)
def test_first_host_of_a_compressed_list(node_list, host):
    assert first_host(node_list) == host


def test_ranks_of_one_job_derive_one_port_and_two_steps_two():
    ports = {from_environ(SRUN | {"SLURM_STEP_ID": step}).master_port for step in ("0", "0", "1", "2")}
    assert len(ports) == 3 and all(15000 <= port < 30000 for port in ports)
    assert from_environ(OPENMPI).master_port == from_environ(OPENMPI | {"OMPI_COMM_WORLD_RANK": "1"}).master_port
    assert (
        from_environ(OPENMPI).master_port != from_environ(OPENMPI | {"PMIX_NAMESPACE": "prterun-gpu01-9@1"}).master_port
    )


def test_reading_the_place_imports_no_torch():
    code = "import sys, finetune.distributed.env; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(("node", "size"), [("0", 4), ("99999999", 4), ("100000000", 3)])
def test_the_tasks_of_millions_of_nodes_are_not_listed(node, size):
    given = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4(x100000000),3", "SLURM_NODEID": node}
    assert from_environ(given).local_world_size == size


def test_threads_that_are_no_number_are_refused():
    for value in ("x", "-1", "4,2", "1" * 30):
        with pytest.raises(UserError, match="OMP_NUM_THREADS"):
            from_environ({"OMP_NUM_THREADS": value})
    assert from_environ({"OMP_NUM_THREADS": " "}) is None and from_environ({"OMP_NUM_THREADS": "4"}) is None


def test_a_variable_that_is_missing_is_told_with_those_of_launchers_alone() -> None:
    """Others end in SIZE, too, such as OpenBLAS's."""
    with pytest.raises(UserError, match=r"LOCAL_RANK is not set, though .* are \(RANK=0, WORLD_SIZE=4\)"):
        from_environ({"RANK": "0", "WORLD_SIZE": "4", "OPENBLAS_L2_SIZE": "512", "HISTSIZE": "1000"})
