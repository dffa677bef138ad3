"""A model as an encoder: the mean of its last hidden states in place of what its head says.

    texts    the mean over the tokens of a text, special ones included, padding not (as sentence-transformers pools)
    images   the mean over patches, or over the positions of the last feature map

Shapes: B examples, L tokens or patches, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from finetune.data.table import Row
from finetune.errors import UserError
from finetune.recipe.card import TaskCard
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, RecordOptions
from finetune.tasks.records import Fields, figure, refuse_options
from finetune.tasks.task import Encoded, Task
from finetune.tasks.text.padding_free import split_values
from finetune.tasks.text.shared_prefixes import whole_sequences

FLAG = "--embed"
REMEDY = "Use an encoder, such as BERT, MiniLM or ViT."


@dataclass(frozen=True)
class Embedding:
    """A task whose answers are embeddings of what another task reads. It has no targets, and is not trained.

    normalize: to length 1. Picklable.
    """

    inner: Task
    normalize: bool = False

    @cached_property
    def card(self) -> TaskCard:
        """The card of rows that are only asked."""
        asked = self.inner.card.for_asking()
        return replace(asked, rows=replace(asked.rows, targets=(), asked=asked.rows.required))

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """What the model is asked, whatever else a row says."""
        return self.inner.encode(artifacts, rows, with_targets=False)

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """As the other task, and padded: of examples without padding, a classifier computes the last states of one token."""
        padded = replace(artifacts, settings={**artifacts.settings, "packing": "none"})
        return self.inner.collate(padded, examples)

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The last hidden states: [B, L, H], or [B, H, height, width] of a feature map."""
        found: list[Any] = []
        handle = encoder_of(model).register_forward_hook(lambda module, inputs, outputs: found.append(outputs))
        try:
            self.inner.forward(model, batch)
        finally:
            handle.remove()
        outputs = found[0]
        states: torch.Tensor = outputs.last_hidden_state if hasattr(outputs, "last_hidden_state") else outputs[0]
        return states

    def decode(self, artifacts: TaskArtifacts, outputs: torch.Tensor, batch: Batch) -> list[Answer]:
        """{"embedding": H numbers} of each example."""
        pooled = mean_states(outputs.detach().float(), batch)
        if self.normalize:
            pooled = nn.functional.normalize(pooled, dim=-1)
        return [Answer(id, {"embedding": row}) for id, row in zip(batch.ids, pooled.tolist(), strict=True)]

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """The embedding alone. Raises: UserError for options of other answers."""
        refuse_options(options, FLAG, takes=())
        return {"embedding": ["number"]}

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """Raises: BadRow for numbers that are not finite."""
        return {"embedding": [figure(value) for value in answer.values["embedding"]]}


def mean_states(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean over tokens, patches or positions: float32 [B, H]. states: as Embedding.forward gives them."""
    if states.dim() == 4:
        return states.mean(dim=(2, 3))
    if "input_ids" not in batch.inputs:
        return states.mean(dim=1)
    rows = split_values(whole_sequences(states, batch.inputs), batch.inputs)
    return torch.stack([row.mean(dim=0) for row in rows])


def encoder_of(model: Any) -> nn.Module:
    """The body of a model with a head, also inside of an adapter's wrapper."""
    bare = getattr(model, "module", model)
    if hasattr(bare, "get_base_model"):
        bare = bare.get_base_model()
    body: nn.Module = bare.base_model
    return body


def check_encoder(card: TaskCard, config: Any, where: str) -> None:
    """Raises: UserError for a model that is no encoder: its tokens see only those before them, or it finds boxes.

    config: of the model.
    """
    kind = str(getattr(config, "model_type", ""))
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if getattr(config, "is_causal", None) is False:
        causal = False
    if causal or not card.model.embeds or getattr(config, "is_encoder_decoder", False):
        reason = (
            "a decoder, whose tokens see only those before them"
            if causal
            else f"a model of the task {card.name}, whose states are not those of a text or an image as a whole"
        )
        raise UserError(f"{FLAG} needs an encoder, but {kind} is {reason}", where=where, remedy=REMEDY)


def as_embedding(task: Task, *, normalize: bool) -> Any:
    """The task, asked for embeddings. It answers as every Task does, but is neither trained nor scored."""
    return Embedding(task, normalize)
