"""Sequence to sequence: translation and summarization with encoder-decoder models (T5, BART, Marian).

Shapes: B examples, S source tokens, T target tokens (each padded to the longest of the micro-batch), V vocabulary.
Unit of loss: one target token, the end of the text included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from finetune.data.prepare.cache import publish
from finetune.data.table import Examples, Row, Table
from finetune.models.config import load_config
from finetune.models.losses import IGNORE
from finetune.models.tokenizer import fresh_settings, load_tokenizer
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, RecordOptions, Score
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.facts import Facts
from finetune.tasks.records import Fields, refuse_options, text_fields, text_record
from finetune.tasks.seq2seq.card import CARD
from finetune.tasks.seq2seq.data import encode_rows, source_and_target, training_texts, written_texts
from finetune.tasks.task import Encoded
from finetune.tasks.text.building import build_text_model
from finetune.tasks.text.dataset import text_dataset
from finetune.tasks.text.inputs import SHOWN, shortened, shown_texts
from finetune.tasks.text.lengths import pad_rows, padded_width, usable_length
from finetune.tasks.text.limits import KEY as LIMITED_BY
from finetune.tasks.text.limits import SOURCE_OPTION
from finetune.tasks.text.supervised_tokens import note_loss_head
from finetune.tasks.vision.drawing import Pictures


class Seq2Seq:
    """The task; see Task for what each method promises."""

    card = CARD

    def prepare(self, plan: Plan, tables: Mapping[str, Table], facts: Facts) -> TaskArtifacts:
        """Tokenizer and limits."""
        recipe = plan.recipe
        options: Any = recipe.options
        tokenizer = load_tokenizer(recipe.model, lambda: training_texts(tables["train"]), publish=publish)
        limit = usable_length(options.max_source_length, tokenizer, load_config(recipe.model), SOURCE_OPTION)
        settings = {
            "max_source_length": int(limit),
            LIMITED_BY: limit.name,
            "label_smoothing": recipe.training.label_smoothing,
        }
        return TaskArtifacts(CARD.name, options, tokenizer, settings=settings)

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """Sources, and with targets what they become; see encode_rows."""
        return encode_rows(artifacts, rows, with_targets=with_targets)

    def dataset(self, plan: Plan, artifacts: TaskArtifacts, table: Table, facts: Facts) -> Examples:
        """A split, encoded through the cache."""
        options, limit = artifacts.options, artifacts.settings["max_source_length"]
        return text_dataset(
            self,
            plan,
            artifacts,
            table,
            facts,
            key=[CARD.name, 1, options.prefix, limit, options.max_target_length, options.on_long],
            limit=f"{limit} tokens of the source or {options.max_target_length} of the target",
            shown=written_texts,
            cost=source_and_target,
        )

    def build(self, plan: Plan, artifacts: TaskArtifacts, facts: Facts) -> nn.Module:
        """The encoder-decoder model, which computes its loss in its forward pass; all ranks call it."""
        recipe, tokenizer = plan.recipe, artifacts.processor
        settings: dict[str, Any] = {}
        if fresh_settings(recipe.model, tokenizer) and "decoder_start_token_id" not in recipe.model.config:
            settings["decoder_start_token_id"] = tokenizer.pad_token_id
        model = build_text_model(
            AutoModelForSeq2SeqLM,
            plan,
            artifacts,
            facts,
            settings=settings,
            has_head=False,
        )
        note_loss_head(model, facts)
        return model

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"input_ids": [5, 6, 1], "labels": [7, 1]}] -> input_ids [[5, 6, 1]], labels [[7, 1]].

        The decoder's inputs are made of the labels by the model (`forward`), as each family does it.
        """
        inputs, padding = pad_rows(examples, artifacts.processor.pad_token_id)
        ids = tuple(int(example["id"]) for example in examples)
        positions = inputs["input_ids"].numel()
        if "labels" not in examples[0]:
            return Batch(ids, inputs, padding=padding, positions=positions)
        lengths = [len(example["labels"]) for example in examples]
        labels = np.full((len(examples), padded_width(max(lengths))), IGNORE, np.int64)
        for row, example in zip(labels, examples, strict=True):
            row[: len(example["labels"])] = example["labels"]
        targets = np.flatnonzero(labels != IGNORE)
        return Batch(
            ids=ids,
            inputs=inputs,
            targets={
                "labels": torch.from_numpy(labels),
                "target_positions": torch.from_numpy(targets),
                "target_ids": torch.from_numpy(labels.reshape(-1)[targets]),
                "units": sum(lengths),
            },
            meta={"label_smoothing": artifacts.settings["label_smoothing"], **shown_texts(examples)},
            padding=padding + labels.size - sum(lengths),
            positions=positions + labels.size,
        )

    def weight(self, batch: Batch) -> int:
        """Target tokens."""
        return int(batch.targets["units"])

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """{"loss_sum": [], "token_losses": [N target tokens]}; for a batch without targets logits of the first target token,
        whose answers come from `generate`.
        """
        bare: Any = getattr(model, "module", model)
        if not batch.targets:
            first = batch.inputs["input_ids"].new_full((len(batch.ids), 1), bare.config.decoder_start_token_id)
            return model(**batch.inputs, decoder_input_ids=first, use_cache=False)
        labels = batch.targets["labels"]
        return model(
            **batch.inputs,
            decoder_input_ids=bare.prepare_decoder_input_ids_from_labels(labels=labels),
            use_cache=False,
            target_ids=batch.targets["target_ids"],
            target_positions=batch.targets["target_positions"],
            label_smoothing=batch.meta["label_smoothing"],
        )

    def loss_sum(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over target tokens, with training.label_smoothing."""
        return outputs["loss_sum"]

    def decode(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Answer]:
        """The sources as text. What the model makes of them is `generate`'s work."""
        sources = zip(batch.ids, _written(artifacts, batch, "source"), strict=True)
        return [Answer(id, shown={"source": source}) for id, source in sources]

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """The text written, and why it ends; see text_record."""
        refuse_options(options, CARD.name, takes=("logprobs",))
        return text_fields(options)

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """See record_fields. Raises: BadRow for an answer with numbers that are not finite."""
        return text_record(answer.values, options)

    def score(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Score]:
        """Loss and number of target tokens of each example; the target as text, shortened."""
        labels, each = batch.targets["labels"], outputs["token_losses"].detach().double()
        rows_of = batch.targets["target_positions"] // labels.shape[1]
        sums = each.new_zeros(len(labels)).index_add(0, rows_of, each).tolist()
        counts = (labels != IGNORE).sum(dim=1).tolist()
        rows = zip(batch.ids, sums, counts, _written(artifacts, batch, "target"), strict=True)
        return [Score(id, loss, count, shown={"target": text}) for id, loss, count, text in rows]

    def metric_options(self, artifacts: TaskArtifacts) -> dict[str, Any]:
        """None."""
        return {}

    def generate(
        self, artifacts: TaskArtifacts, model: nn.Module, batch: Batch, *, synced: bool
    ) -> list[Mapping[str, str]]:
        """What the model makes of each source; beside the target where the batch has one."""
        bare: Any = getattr(model, "module", model)
        options, tokenizer = artifacts.options, artifacts.processor
        generated = bare.generate(
            **{key: batch.inputs[key] for key in ("input_ids", "attention_mask")},
            generation_config=GenerationConfig(
                max_new_tokens=options.max_target_length,
                do_sample=False,
                num_beams=options.beams,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                decoder_start_token_id=bare.config.decoder_start_token_id,
                use_cache=True,
            ),
            synced_gpus=synced,
        )
        texts = [text.strip() for text in tokenizer.batch_decode(generated.tolist(), skip_special_tokens=True)]
        if not batch.targets:
            return [{"text": text} for text in texts]
        pairs = zip(texts, _targets(artifacts, batch), strict=True)
        return [{"text": text, "reference_text": target} for text, target in pairs]

    def sample(
        self,
        artifacts: TaskArtifacts,
        model: nn.Module,
        examples: Sequence[dict[str, Any]],
        *,
        synced: bool,
        pictures: Pictures | None = None,
    ) -> list[dict[str, str]]:
        """Sources with the expected and the generated text."""
        with eval_mode(model) as device:
            batch = self.collate(artifacts, examples).to(device)
            generated = self.generate(artifacts, model, batch, synced=synced)
        sources, targets = (_written(artifacts, batch, role) for role in ("source", "target"))
        rows = zip(batch.ids, sources, targets, generated, strict=True)
        return [
            {"id": str(id), "input": source, "expected": target, "predicted": texts["text"]}
            for id, source, target, texts in rows
        ]


def _written(artifacts: TaskArtifacts, batch: Batch, role: str) -> list[str]:
    """The beginning of each source or target: as it is written where the examples have it with them, else as its tokens say."""
    if SHOWN in batch.meta:
        return [shortened(texts[role]) for texts in batch.meta[SHOWN]]
    return [shortened(text) for text in (_sources if role == "source" else _targets)(artifacts, batch)]


def _sources(artifacts: TaskArtifacts, batch: Batch) -> list[str]:
    rows = [row.tolist() for row in batch.inputs["input_ids"].cpu()]
    return [text.strip() for text in artifacts.processor.batch_decode(rows, skip_special_tokens=True)]


def _targets(artifacts: TaskArtifacts, batch: Batch) -> list[str]:
    """The targets in full as they are written: tokens may be cut, and do not always give back what they were made of."""
    if SHOWN in batch.meta:
        return [str(texts["target"]).strip() for texts in batch.meta[SHOWN]]
    rows = [row[row >= 0].tolist() for row in batch.targets["labels"].cpu()]
    return [text.strip() for text in artifacts.processor.batch_decode(rows, skip_special_tokens=True)]


TASK = Seq2Seq()
