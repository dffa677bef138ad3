"""Settings of a model's configuration that depend on each other: libraries divide by them, and say so in their own words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from finetune.errors import UserError

EXPERTS = ("num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts")
OPTIONAL_EXPERTS = "num_experts"  # none, or one, is a model without a router (Qwen, Jamba)
CHOSEN_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k", "moe_k")
MIN_BUCKETS = 4


def check_experts(settings: Mapping[str, Any], where: str) -> None:
    """Raises: UserError for a token that is to be computed by no expert, or by more of them than there are."""
    for part in _parts_of(settings):
        totals = {key: part[key] for key in EXPERTS if _is_whole(part.get(key))}
        chosen = {key: part[key] for key in CHOSEN_EXPERTS if _is_whole(part.get(key))}
        for key, total in totals.items():
            if total < 0 or (total == 0 and chosen and key != OPTIONAL_EXPERTS):
                raise UserError(f"{key} is {total}", where=where, remedy="A mixture of experts has at least one.")
        for key, count in chosen.items():
            for name, total in totals.items():
                dense = name == OPTIONAL_EXPERTS and total <= 1  # then there is no router
                if not dense and not 1 <= count <= total:
                    raise UserError(
                        f"{key} is {count}, and {name} is {total}",
                        where=where,
                        remedy="A token is computed by at least one expert, and by no more of them than there are.",
                    )


def check_buckets(settings: Mapping[str, Any], where: str) -> None:
    """Raises: UserError for relative positions (T5) that cannot be divided into buckets: half of them are for each direction,
    and half of these for distances of their own; beyond these, distances up to the largest one share the others.
    """
    for part in _parts_of(settings):
        buckets, distance = part.get("relative_attention_num_buckets"), part.get("relative_attention_max_distance")
        if not _is_whole(buckets):
            continue
        if buckets < MIN_BUCKETS:
            raise UserError(
                f"relative_attention_num_buckets is {buckets}",
                where=where,
                remedy=f"Relative positions need at least {MIN_BUCKETS} buckets; T5 has 32.",
            )
        if _is_whole(distance) and distance <= buckets // 2:
            raise UserError(
                f"relative_attention_max_distance is {distance}, not more than half of the {buckets} buckets",
                where=where,
                remedy="Correct one of them; T5 has a distance of 128 and 32 buckets.",
            )


def _parts_of(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings, and those of the models within."""
    yield settings
    for value in settings.values():
        if isinstance(value, Mapping):
            yield from _parts_of(value)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
