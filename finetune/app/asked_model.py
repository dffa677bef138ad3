"""A model that is asked: one copy of it in this process, in evaluation mode, without optimizer, engine or process group."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.app.asked_plan import Precision, Quantization, check_placement, choose_device, plan_asked
from finetune.app.asked_stages import open_stages
from finetune.app.model_sources import FoundModel, find_model
from finetune.distributed.replica_mesh import replica_mesh
from finetune.distributed.session import Session
from finetune.errors import UserError
from finetune.inference.batches import BatchAnswerer
from finetune.inference.generation.answerer import GenerationAnswerer
from finetune.inference.generation.generator import TextGenerator
from finetune.inference.generation.opening import default_penalty, open_generator
from finetune.inference.generation.requests import GenerationSettings
from finetune.models.onednn_linear import use_onednn
from finetune.models.placement import Placement, describe_layers, layer_devices, placed
from finetune.models.quiet import quiet_transformers
from finetune.planning.plan import Plan
from finetune.recipe.trust import is_trusted, trusted
from finetune.tasks import CARDS, load_task
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.facts import Facts
from finetune.tasks.task import Task
from finetune.training.checkpoint_reader import put_weights

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
UNTRAINED = ("new head", "missing weights")  # facts of weights that loading has drawn at random; the head first


@dataclass(frozen=True)
class AskedModel:
    """module: on `device`, in evaluation mode, its weights frozen. autocast: the dtype in which it computes, where that is
    not the dtype of its weights. name, digest: see FoundModel; the precision is part of the digest. notes: for the user.
    ranks: that hold the model together; each of them must be given the same chunks, in the same order.
    """

    task: Task
    plan: Plan
    artifacts: TaskArtifacts
    module: nn.Module
    device: torch.device
    autocast: torch.dtype | None
    name: str
    digest: str
    notes: tuple[str, ...] = ()
    ranks: int = 1

    def batch_answerer(self, budget: int | None = None) -> BatchAnswerer:
        """Answers chunks with this model; budget: cost of a chunk, None: by the device."""
        return BatchAnswerer(
            self.task,
            self.artifacts,
            self.module,
            self.device,
            autocast=self.autocast,
            asked_budget=budget,
            together=self.ranks > 1,
        )

    def answerer(
        self, *, budget: int | None = None, notify: Callable[[str], None] = lambda line: None, **generation: Any
    ) -> BatchAnswerer | GenerationAnswerer:
        """Answers chunks as the task does: with texts (generation: see generation_settings) or by one forward pass."""
        if self.writes_text and self.ranks > 1:
            return self._writing_together(budget, generation)
        if self.writes_text:
            return self.generation_answerer(self.generation_settings(**generation), notify=notify)
        return self.batch_answerer(budget)

    def _writing_together(self, budget: int | None, generation: dict[str, Any]) -> BatchAnswerer:
        """Batches through `generate`, which all ranks call alike; continuous batching would order them by time."""
        new_tokens = generation.pop("new_tokens", None)
        if asked := [name for name, value in generation.items() if value]:
            raise UserError(
                f"{', '.join(asked)}: a model whose layers are sliced over ranks writes the likeliest tokens only",
                where=self.name,
                remedy="Leave it out, or spread whole layers over the GPUs in place of slices.",
            )
        answerer = self.batch_answerer(budget)
        if new_tokens is not None:
            options: Any = self.artifacts.options
            name = "reply_length" if hasattr(options, "reply_length") else "max_target_length"
            changed = replace(self.artifacts, options=options.model_copy(update={name: new_tokens}))
            answerer = replace(self, artifacts=changed).batch_answerer(budget)
        return answerer

    def text_generator(
        self,
        *,
        beams: int = 1,
        longest: int = 0,
        slots: int = 0,
        notify: Callable[[str], None] = lambda line: None,
    ) -> TextGenerator:
        """Writes text with this model; see open_generator. Raises: UserError for a task that writes none."""
        if not self.writes_text:
            writing = ", ".join(name for name in CARDS if hasattr(load_task(name), "generate"))
            raise UserError(
                f"a model of the task {self.task.card.name} writes no text",
                where=self.name,
                remedy=f"Give a model of one of the tasks {writing}.",
            )
        return open_generator(
            self.artifacts,
            self.module,
            beams=beams,
            longest=longest,
            autocast=self.autocast,
            slots=slots,
            notify=notify,
        )

    @property
    def writes_text(self) -> bool:
        """Whether its answers are texts, which a generator writes."""
        return hasattr(self.task, "generate")

    def generation_settings(self, **changes: Any) -> GenerationSettings:
        """Those of its training's own replies, with `changes`: a value of None changes nothing."""
        options: Any = self.artifacts.options
        defaults = {
            "new_tokens": getattr(options, "reply_length", None) or getattr(options, "max_target_length", None),
            "beams": getattr(options, "beams", None),
            "repetition_penalty": default_penalty(self.module),
        }
        named = {**defaults, **{name: value for name, value in changes.items() if value is not None}}
        return GenerationSettings(**{name: value for name, value in named.items() if value is not None})

    def generation_answerer(
        self, settings: GenerationSettings, *, notify: Callable[[str], None] = lambda line: None
    ) -> GenerationAnswerer:
        """Answers chunks with texts. Close its `generator` when done."""
        limit = int(self.artifacts.settings.get("max_length", 0))
        generator = self.text_generator(
            beams=settings.beams, longest=limit + settings.new_tokens if limit else 0, notify=notify
        )
        return GenerationAnswerer(self.task, self.artifacts, self.module, generator, settings)


def open_model(
    source: str | Path,
    *,
    checkpoint: str = "best",
    task: str = "",
    precision: Precision | None = None,
    quantization: Quantization | None = None,
    device: torch.device | str | None = None,
    placement: Placement | None = None,
    trust_remote_code: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> AskedModel:
    """Find a model, see `find_model`, and load it, see `load_found`."""
    with trusted(trust_remote_code or is_trusted()):
        found = find_model(source, checkpoint=checkpoint, task=task, notify=notify)
        return load_found(found, precision=precision, quantization=quantization, device=device, placement=placement)


def load_found(
    found: FoundModel,
    *,
    precision: Precision | None = None,
    quantization: Quantization | None = None,
    device: torch.device | str | None = None,
    placement: Placement | None = None,
    session: Session | None = None,
) -> AskedModel:
    """The model in this process: whole on one device, its layers on several, or this rank's slices or stage of them.

    placement: None: whole. session: of ranks that each hold slices or a stage; all of them call it.

    precision: of weights and computation. None: as the model was evaluated in its training, or as its weights are stored.
    quantization: of the weights, while they are loaded. None: as in its training.
    device: None: the current GPU, the CPU where there is none.
    Raises: UserError if the model cannot be loaded so.
    """
    chosen = choose_device(device)
    plan = plan_asked(found, precision, quantization, chosen)
    autocast = HALF.get(plan.precision) if plan.weights_dtype == torch.float32 else None
    facts, task, stage_notes = Facts(), load_task(found.recipe.task), list[str]()
    check_placement(found, plan, placement)
    slicing = session if placement is not None and placement.slices > 1 else None
    with quiet_transformers(), warnings.catch_warnings(), placed(placement), replica_mesh(slicing):
        warnings.simplefilter("ignore", FutureWarning)  # of peft's use of transformers
        module = build_trained(found, plan, facts)
    if placement is not None and placement.stages > 1:
        assert session is not None, "stages are on the ranks of a session"
        module, stage_notes = open_stages(task, found.artifacts, module, session, placement.stages)
    module.requires_grad_(False)
    module.eval()
    if (spread := layer_devices(module)) is not None:
        chosen = spread[0]
    elif placement is None or placement.ranks == 1:
        module.to(chosen)
    use_onednn(module)
    return AskedModel(
        task=task,
        plan=plan,
        artifacts=found.artifacts,
        module=module,
        device=chosen,
        autocast=autocast,
        name=found.name,
        digest=f"{found.digest}-{str(autocast or plan.weights_dtype).removeprefix('torch.')}-{plan.recipe.model.quantization}",
        notes=(*plan.notes, *facts.notes, *describe_layers(module), *stage_notes),
        ranks=placement.ranks if placement is not None else 1,
    )


def build_trained(found: FoundModel, plan: Plan, facts: Facts) -> nn.Module:
    """The model with its trained weights, whole, on the CPU (a quantized one where it computes).

    Raises: UserError if weights are missing that training would have made anew.
    """
    torch.manual_seed(plan.recipe.seed)
    module = load_task(plan.recipe.task).build(plan, found.artifacts, facts)
    if (checkpoint := found.checkpoint()) is not None:
        put_weights(module, checkpoint)
    elif missing := [f"{kind}: {facts.values[kind]}" for kind in UNTRAINED[found.body :] if kind in facts.values]:
        raise UserError(
            f"the model lacks weights, so its answers would be random ({'; '.join(missing)})",
            where=found.name,
            remedy="Train it for this task first, or give the folder of a model that was.",
        )
    return module
