"""plan.json of a run that is resumed: what is kept, and what differs on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.planning.plan import Plan, TrainingPlan
from finetune.recipe.json_file import read_json

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
COMPARED = (
    "ranks",
    "device",
    "engine",
    "optimizer",
    "weights_dtype",
    "tensor",
    "pipeline",
    "kernels",
    "compile",
    "master_weights",
)


@dataclass(frozen=True)
class StoredPlan:
    """training, machine: the two parts of plan.json.

    A plan.json of the first design is flat; of the training it holds only the precision.
    """

    training: Mapping[str, Any]
    machine: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> StoredPlan | None:
        """None where there is none yet. Raises: UserError if it is damaged: the precision of a run must not change
        unnoticed.
        """
        try:
            tree = read_json(path)
            parts = tree if "training" in tree else {"training": {"precision": tree["precision"]}, "machine": tree}
            stored = cls(dict(parts["training"]), dict(parts["machine"]))
            if stored.training["precision"] not in PRECISIONS:
                raise ValueError(f"precision {stored.training['precision']!r}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the plan of the run cannot be read: {error}",
                where=str(path),
                remedy="Bring it back as it was. To have the recipe resolved anew on this machine, remove it, and plan "
                "from run.json: the precision may then differ.",
            ) from error
        return stored

    def over(self, resolved: TrainingPlan) -> TrainingPlan:
        """The training plan to keep: what was stored, and for what was not, what the recipe resolves to now."""
        known = {field.name for field in fields(TrainingPlan)} & self.training.keys()
        return replace(resolved, **{name: _frozen(self.training[name]) for name in known})

    def differences(self, plan: Plan, resolved: TrainingPlan) -> str:
        """One line for the user: what is kept although this machine would choose otherwise, and how the machine differs;
        "" if nothing differs. resolved: what the recipe resolves to on this machine.
        """
        ours, kept = asdict(resolved), asdict(plan.training)
        parts = [f"{name} {kept[name]} as the run began (here it would be {ours[name]})" for name in kept
                 if kept[name] != ours[name]]  # fmt: skip
        now = plan.to_dict()["machine"]
        for name in COMPARED:
            if name in self.machine and self.machine[name] != now[name]:
                parts.append(f"{name} {self.machine[name]} -> {now[name]}")
        before, after = _zero_stage(self.machine), _zero_stage(now)
        if before != after and None not in (before, after):  # else the engine differs
            parts.append(f"ZeRO stage {before} -> {after}")
        return "resuming with " + ", ".join(parts) if parts else ""


def _zero_stage(machine: Mapping[str, Any]) -> Any:
    """The stage of the DeepSpeed configuration of a machine plan; None without one."""
    config = machine.get("deepspeed")
    section = config.get("zero_optimization") if isinstance(config, Mapping) else None
    return section.get("stage") if isinstance(section, Mapping) else None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
