"""What one process of a launch per replica is: a rank of some replica, or the reader that outlives them all. No torch here.

Each replica is a process group of its own, so that it can be started again while the others work. RANK and WORLD_SIZE say
what a rank is in it; FINETUNE_REPLICA says the rest. Another launcher starts all ranks as one group, and does not set it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from finetune.distributed.env import from_environ

VARIABLE = "FINETUNE_REPLICA"
READER = -1  # in place of the number of a rank


@dataclass(frozen=True)
class ReplicaPlace:
    """number: of the replica, from 0; READER for the process that gives out work. size: its ranks. replicas: how many there
    are. attempt: how often this one was started before. folder: the FolderStore that all of them share.
    """

    number: int
    size: int
    replicas: int
    attempt: int
    folder: str

    @classmethod
    def from_environ(cls, environment: Mapping[str, str] | None = None) -> ReplicaPlace | None:
        """None for a process of a launch of another kind."""
        text = (os.environ if environment is None else environment).get(VARIABLE)
        return cls(**json.loads(text)) if text else None

    def as_environ(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}

    @property
    def is_reader(self) -> bool:
        return self.number == READER

    @property
    def first(self) -> int:
        """The number of its first rank among those of all replicas."""
        return READER if self.is_reader else self.number * self.size

    @property
    def ranks(self) -> int:
        """Of all replicas."""
        return self.size * self.replicas


def rank_number(environment: Mapping[str, str] | None = None) -> int:
    """This process among all ranks of the command: 0 where it is alone, READER for the reader."""
    env, place = from_environ(environment), ReplicaPlace.from_environ(environment)
    within = env.rank if env is not None else 0
    return within if place is None else place.first + within


def process_name(rank: int) -> str:
    """Of a log and in messages about a file: "rank-3", "reader"."""
    return "reader" if rank == READER else f"rank-{rank}"


def describe_rank(rank: int) -> str:
    """For messages."""
    return "the process that reads and writes" if rank == READER else f"rank {rank}"
