"""Which of how many processes this one is, read from the environment that a launcher sets. No torch: cheap to import.

accelerate launch, torchrun and deepspeed say it in RANK, WORLD_SIZE, LOCAL_RANK; mpirun and srun in words of their own.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from finetune.errors import UserError
from finetune.recipe.quotas import THREADS

# Step ids that Slurm reserves for the batch script, the interactive shell and its own services: one process, no launch.
_SLURM_RESERVED_STEPS = range(2**32 - 10, 2**32)
_SLURM_SHELLS = ("bash", "sh", "zsh", "interactive")
_TOLD = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    *(f"OMPI_COMM_WORLD_{word}" for word in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
}
_PORTS = range(15000, 30000)  # below the ports that Linux hands out by itself (from 32768)


@dataclass(frozen=True)
class DistributedEnv:
    """This process among its peers. master_addr and master_port: where rank 0 listens ("" and 0 if alone)."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launcher: str
    master_addr: str = ""
    master_port: int = 0


def from_environ(environment: Mapping[str, str] | None = None) -> DistributedEnv | None:
    """What a launcher says of this process, or None where no launcher started it (it may then launch others).

    A launcher's own RANK goes first (torchrun inside srun), then MPI (its daemons inherit Slurm's words), then Slurm.

    Raises: UserError where the environment contradicts itself, naming the variables and what to do.
    """
    env = os.environ if environment is None else environment
    if env.get(THREADS, "").strip():  # libraries read it as a number, and say no more than that it is none
        _number(env, THREADS)
    if "RANK" in env or "WORLD_SIZE" in env:
        return _check(_from_torch(env), env)
    if "OMPI_COMM_WORLD_RANK" in env:
        return _check(_from_openmpi(env), env)
    if "PMI_RANK" in env and "PMI_SIZE" in env and "SLURM_PROCID" not in env:
        return _check(_from_pmi(env), env)
    if "SLURM_PROCID" in env and _in_slurm_launch(env):
        return _check(_from_slurm(env), env)
    return None


def as_environ(given: DistributedEnv) -> dict[str, str]:
    """The variables that torch.distributed, Accelerate and DeepSpeed read, for os.environ.update.

    LOCAL_SIZE is DeepSpeed's name for LOCAL_WORLD_SIZE; its CPU collectives crash without it.
    """
    variables = {
        "RANK": str(given.rank),
        "WORLD_SIZE": str(given.world_size),
        "LOCAL_RANK": str(given.local_rank),
        "LOCAL_WORLD_SIZE": str(given.local_world_size),
        "LOCAL_SIZE": str(given.local_world_size),
    }
    if given.master_addr:
        variables["MASTER_ADDR"] = given.master_addr
    if given.master_port:
        variables["MASTER_PORT"] = str(given.master_port)
    return variables


def first_host(node_list: str) -> str:
    """The first host of Slurm's compressed list: "gpu[01-03,07],cpu1" -> "gpu01", "r[2-3]n[05,09]" -> "r2n05"."""
    depth = 0
    for position, letter in enumerate(node_list):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            node_list = node_list[:position]
            break
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", node_list).strip()


def _from_torch(env: Mapping[str, str]) -> DistributedEnv:
    """accelerate launch, torchrun, deepspeed, or RANK and the rest exported by hand."""
    launcher = _torch_launcher(env)
    rank, world_size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    if world_size == 1:
        local_rank, local_size = _number(env, "LOCAL_RANK", default=0), 1
    else:
        local_rank = _number(env, "LOCAL_RANK")
        local_size_name = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in env else "LOCAL_SIZE"
        if local_size_name not in env:
            raise UserError(
                f"RANK={rank} and WORLD_SIZE={world_size} are set, but not how many of them run on this machine",
                where="environment",
                remedy="Export LOCAL_WORLD_SIZE=<processes on this machine>, or start with torchrun.",
            )
        local_size = _number(env, local_size_name)
    return DistributedEnv(rank, world_size, local_rank, local_size, launcher, env.get("MASTER_ADDR", ""), _port(env))


def _torch_launcher(env: Mapping[str, str]) -> str:
    if any(name.startswith("ACCELERATE_") for name in env):
        return "accelerate"
    if "TORCHELASTIC_RUN_ID" in env:
        return "torchrun"
    return "deepspeed" if "CROSS_RANK" in env else "environment"


def _from_openmpi(env: Mapping[str, str]) -> DistributedEnv:
    rank, world_size = _number(env, "OMPI_COMM_WORLD_RANK"), _number(env, "OMPI_COMM_WORLD_SIZE")
    local_rank, local_size = _number(env, "OMPI_COMM_WORLD_LOCAL_RANK"), _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE")
    # One job's ranks share this name, so they all derive the same port from it.
    job = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_ess_base_jobid") or ""
    return _mpi_env(env, "mpirun", (rank, world_size, local_rank, local_size), job)


def _from_pmi(env: Mapping[str, str]) -> DistributedEnv:
    """MPICH and Intel MPI (Hydra)."""
    rank, world_size = _number(env, "PMI_RANK"), _number(env, "PMI_SIZE")
    local_rank, local_size = _number(env, "MPI_LOCALRANKID"), _number(env, "MPI_LOCALNRANKS")
    return _mpi_env(env, "mpiexec", (rank, world_size, local_rank, local_size), env.get("PMI_PORT", ""))


def _mpi_env(env: Mapping[str, str], launcher: str, numbers: tuple[int, int, int, int], job: str) -> DistributedEnv:
    """MPI does not say where rank 0 runs: with one machine it is here, with more the user must say."""
    rank, world_size, local_rank, local_size = numbers
    address = env.get("MASTER_ADDR", "")
    if not address:
        if local_size != world_size:
            raise UserError(
                f"{world_size} ranks run on several machines, and MASTER_ADDR does not say on which rank 0 runs",
                where="environment",
                remedy=f"{launcher} -x MASTER_ADDR=<host of rank 0> -x MASTER_PORT=29500 ... (mpiexec: -genv)",
            )
        address = "127.0.0.1"
    port = _port(env) or _derived_port(zlib.crc32(job.encode()))
    return DistributedEnv(rank, world_size, local_rank, local_size, launcher, address, port)


def _in_slurm_launch(env: Mapping[str, str]) -> bool:
    """True for a task of `srun`, not for a batch script, a shell, or one task that may start processes itself."""
    step = env.get("SLURM_STEP_ID", "")
    if (
        not step.isdecimal()
        or len(step) > 18
        or int(step) in _SLURM_RESERVED_STEPS
        or env.get("SLURM_JOB_NAME") in _SLURM_SHELLS
    ):
        return False
    return _slurm_world_size(env) > 1


def _from_slurm(env: Mapping[str, str]) -> DistributedEnv:
    rank, world_size = _number(env, "SLURM_PROCID"), _slurm_world_size(env)
    local_rank = _number(env, "SLURM_LOCALID")
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or ""
    # The launch node comes last: srun may have been typed on a login node, while rank 0 runs on the list's first.
    address = env.get("MASTER_ADDR") or first_host(nodes) or env.get("SLURM_LAUNCH_NODE_IPADDR", "")
    job, step = _number(env, "SLURM_JOB_ID", default=0), _number(env, "SLURM_STEP_ID", default=0)
    port = _port(env) or _derived_port(job + 997 * step)  # two steps of one job may run side by side
    return DistributedEnv(rank, world_size, local_rank, _slurm_local_size(env, world_size), "srun", address, port)


def _slurm_world_size(env: Mapping[str, str]) -> int:
    return _number(env, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS")


def _slurm_local_size(env: Mapping[str, str], world_size: int) -> int:
    """Tasks on this node, from "4(x2),3" (one entry per node, by SLURM_NODEID) or the number that was asked for."""
    described = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE")
    if described:
        node = _number(env, "SLURM_NODEID", default=0)
        for entry in described.split(","):
            match = re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", entry.strip())
            if match is None:
                raise _unreadable("SLURM_STEP_TASKS_PER_NODE", described, 'a list such as "4(x2),3"')
            if node < int(match[2] or 1):
                return int(match[1])
            node -= int(match[2] or 1)
    return _number(env, "SLURM_NTASKS_PER_NODE", default=world_size)


def _derived_port(number: int) -> int:
    """The same port on every rank of a job; most likely a different one for each job."""
    return _PORTS[number % len(_PORTS)]


def _port(env: Mapping[str, str]) -> int:
    return _number(env, "MASTER_PORT", default=0)


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A whole number from a variable. Raises: UserError where it is missing without a default, or is not a number."""
    text = env.get(name, "").strip()
    if not text:
        if default is not None:
            return default
        there = ", ".join(f"{key}={env[key]}" for key in sorted(env) if key in _TOLD)
        raise UserError(
            f"{name} is not set, though other variables of a launcher are ({there})",
            where="environment",
            remedy=f"Start with accelerate launch, torchrun, deepspeed, srun or mpirun, which set {name}; "
            "or unset RANK and WORLD_SIZE to let finetune start its own processes.",
        )
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise _unreadable(name, text, "a whole number")
    return int(text)


def _unreadable(name: str, text: str, expected: str) -> UserError:
    return UserError(f"{name}={text!r} is not {expected}", where="environment", remedy=f"Unset or correct {name}.")


def _check(given: DistributedEnv, env: Mapping[str, str]) -> DistributedEnv:
    """The numbers must agree with each other: one wrong rank makes all others hang silently."""
    rank, world, local_rank, local_size = given.rank, given.world_size, given.local_rank, given.local_world_size
    problem = ""
    if world < 1:
        problem = f"the world size is {world}; it must be at least 1"
    elif rank >= world:
        problem = f"rank {rank} does not exist among {world} ranks (0 to {world - 1})"
    elif not 1 <= local_size <= world:
        problem = f"{local_size} processes on this machine do not fit {world} ranks in all"
    elif local_rank >= local_size:
        problem = f"local rank {local_rank} does not exist among {local_size} processes on this machine"
    elif local_rank > rank:
        problem = f"local rank {local_rank} is greater than rank {rank}"
    if problem:
        raise UserError(
            f"{problem} (launcher: {given.launcher})",
            where="environment",
            remedy="If they are left over from another launch, unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.",
        )
    if world > 1 and not (given.master_addr and given.master_port):
        name = "MASTER_PORT" if given.master_addr else "MASTER_ADDR"
        raise UserError(
            f"{name} is not set: {world} ranks cannot find each other (launcher: {given.launcher})",
            where="environment",
            remedy="Export MASTER_ADDR=<host of rank 0> MASTER_PORT=29500, the same for every rank.",
        )
    return given
