"""What `accelerate launch` leaves in the environment of a rank: the recipe decides, whatever it says."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from typing import Any

from tests.hostile.attack import TITLE, Attack, Place

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7",
    "ACCELERATE_GRADIENT_CLIPPING": "0.5",
    "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage,gradient_accumulation_steps,gradient_clipping,mixed_precision",
}


def _train(place: Place) -> Sequence[str]:
    def change(tree: dict[str, Any]) -> None:
        tree["parallel"] = {"deepspeed": "none"}
        tree["training"] = {"steps": 1, "global_batch": 8, "learning_rate": 0.001}

    place.recipe(change)
    place.write("broken.json", "{")
    return ("train", "recipe.yaml", "--run-dir", "new")


def attacks() -> Iterator[Attack]:
    for name, values, says in (
        ("FSDP", FSDP, "started with FSDP.*the recipe decides"),
        ("bf16", {"ACCELERATE_MIXED_PRECISION": "bf16"}, "says bf16, the recipe fp32; the recipe decides"),
        ("ZeRO-3 in other sizes", ZERO3, "started with DeepSpeed.*the recipe decides"),
        ("Megatron", {"ACCELERATE_USE_MEGATRON_LM": "true"}, "started with Megatron-LM.*the recipe decides"),
        ("a compiler with codes", {"ACCELERATE_DYNAMO_BACKEND": "x" + TITLE}, r"torch.compile by x\\u001b"),
    ):
        environment = {**ALONE, **values, "MASTER_PORT": str(_free_port())}
        yield Attack(f"accelerate says {name}", _train, says, 0, 90, environment=environment)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
