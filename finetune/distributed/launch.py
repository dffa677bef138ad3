"""What is started on this machine: N ranks, the command of each and its environment. No torch here.

The ranks are children of this process, with the environment that `accelerate launch` would give them. Its own process would
import torch and DeepSpeed (five seconds of a core) first. rank_processes.py starts them, watching.py waits for them.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.distributed.bytecode import bytecode_variables
from finetune.distributed.env import DistributedEnv, as_environ
from finetune.distributed.rendezvous import ADDRESS, PRIVATE, stay_inside
from finetune.distributed.temporary_folder import temporary_variables
from finetune.distributed.waiting import WaitingRanks
from finetune.recipe.quotas import THREADS, threads_each
from finetune.recipe.trust import OPTION, is_trusted

# The logs folder of the supervising process; it changes what is printed, not what is trained.
SUPERVISED = "FINETUNE_SUPERVISED"
PROGRAM = (sys.executable, "-m", "finetune")
LAUNCH = "FINETUNE_LAUNCH"  # the same in every process of one launch, orphans among them
# oneDNN keeps the machine code of its last 1,024 operations, one for each shape. Batches without padding have new shapes at
# each step, and what is kept breaks up the heap: a gigabyte for a tiny model. 64 suffice for the layers of one step.
ONEDNN_CODE = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

AGAIN = {
    "train": "Run the same command to resume from the last checkpoint.",
    "predict": "Run the same command again: what is answered stays.",
}


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of one launch meet. port: names the launch to DeepSpeed; nobody listens there. logs: the folder of the
    supervising process. private: a folder that only this user can enter (rendezvous.py), of temporary files as well. mark: in
    the environment of every process of the launch.
    """

    port: int
    logs: Path
    private: Path
    mark: str


@dataclass(frozen=True)
class Launch:
    """What is started: `python -m finetune <arguments>` on `processes` ranks of this machine.

    forks: the ranks may be forked from one process that has imported what they need (forking.py).
    first: what the first of them is called in logs and messages, where one command starts several launches.
    waiting: processes that have imported what ranks need, and become the first ranks (waiting.py).
    """

    arguments: Sequence[str]
    processes: int
    deepspeed: bool
    cpu: bool
    forks: bool = False
    first: int = 0
    waiting: WaitingRanks | None = None

    def command(self) -> list[str]:
        """What each rank runs."""
        trust = [OPTION] if is_trusted() else []
        return [*PROGRAM, *self.arguments, *trust]

    @property
    def again(self) -> str:
        """What a user does after it failed."""
        return AGAIN.get(self.arguments[0] if self.arguments else "", "Run the same command again.")

    def equivalent(self, port: int) -> str:
        """The command of accelerate that starts the same ranks, ready to be typed by hand."""
        mode = ["--use_deepspeed"] if self.deepspeed else ["--multi_gpu"] if self.processes > 1 else []
        words = ["--num_processes", str(self.processes), "--num_machines", "1", "--main_process_port", str(port)]
        words += ["--mixed_precision", "no", "--dynamo_backend", "no", *mode, "-m", "finetune", *self.arguments]
        return shlex.join(["accelerate", "launch", *words])

    def meet_at(self, port: int, logs: Path, private: Path) -> Rendezvous:
        """Where its ranks meet. Those that wait already have a mark, which becomes that of the launch."""
        mark = self.waiting.mark if self.waiting and self.waiting.count else uuid.uuid4().hex
        return Rendezvous(port, logs, private, mark)

    def environment(self, rank: int, rendezvous: Rendezvous) -> dict[str, str]:
        """Of one rank."""
        place = DistributedEnv(rank, self.processes, rank, self.processes, "finetune", ADDRESS, rendezvous.port)
        env = {**self.surroundings(), SUPERVISED: str(rendezvous.logs), LAUNCH: rendezvous.mark}
        env |= {PRIVATE: str(rendezvous.private), **as_environ(place), **temporary_variables(rendezvous.private)}
        stay_inside(env)
        return env

    def surroundings(self) -> dict[str, str]:
        """The environment that is the same for every rank of every run."""
        env = {**os.environ, **bytecode_variables(os.environ)}
        env.setdefault(THREADS, str(threads_each(self.processes)))
        env.setdefault("TOKENIZERS_PARALLELISM", "false")
        env.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
        env.pop("PYTHONUNBUFFERED", None)  # which writes a line in pieces: the ranks share a log, and would mix them
        if self.cpu:
            env["DS_ACCELERATOR"] = "cpu"
            env.setdefault(*ONEDNN_CODE)
        return env

    def start_early(self, preload: Mapping[str, object]) -> WaitingRanks:
        """Processes that import while this one is busy, one for each rank. preload: what they import (app/dispatch.py)."""
        waiting = WaitingRanks()
        for _ in range(self.processes):
            environment = {**self.surroundings(), LAUNCH: waiting.mark}
            waiting.start(self.command(), environment, preload)
        return waiting


def free_port() -> int:
    """A port of the loopback interface on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])
