"""Sequence to sequence: translation and summarisation with encoder-decoder models (T5, BART, Marian).

Shapes: B examples, S source tokens, T target tokens (each padded to the longest of the micro-batch),
V vocabulary. Unit of loss: one target token, the end of the text included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from finetune.data.bad_rows import BadRow
from finetune.data.table import Examples, Row, Table
from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe
from finetune.recipe.section import Section
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.task import Batch, Kit, Prediction
from finetune.tasks.text.lengths import describe_lengths, pad_rows, padded_width, usable_length
from finetune.tasks.text.selection import drop_marked
from finetune.tasks.text.sequence_models import SHOWN_CHARACTERS, row_text

if TYPE_CHECKING:
    import torch
    from torch import nn


class Seq2SeqOptions(Section):
    prefix: str = Field(default="", description='Put before every source, such as "translate German to English: ".')
    max_source_length: int = Field(
        default=256, ge=4, description="Tokens of a source at most, the model's limit besides."
    )
    max_target_length: int = Field(
        default=128, ge=2, description="Tokens of a target at most; also of what is generated at evaluation."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate", description="A longer one: cut its end, leave the example out (counted), or a bad row."
    )
    beams: int = Field(default=1, ge=1, description="Beams of the generation at evaluation; 1: greedy.")


CARD = TaskCard(
    name="seq2seq",
    summary="Translate or summarise with an encoder-decoder model.",
    columns={"source": "The text to translate or summarise.", "target": "What should come of it."},
    required=(("source",), ("target",)),
    metrics=("perplexity", "sacrebleu", "chrf", "rouge1", "rouge2", "rouge_l", "exact_match"),
    default_metrics=("perplexity", "sacrebleu", "chrf"),
    best="sacrebleu",
    unit="token",
    options=Seq2SeqOptions,
    label_smoothing=True,
    micro_batch=16,
)


class Seq2Seq:
    """The task; see Task for what each method promises."""

    card = CARD

    def read(self, recipe: Recipe, tables: dict[str, Table]) -> Kit:
        """Tokenizer, encoded pairs of texts. Raises: UserError for bad rows."""
        from finetune.data.prepare.cache import publish
        from finetune.models.config import load_config
        from finetune.models.tokenizer import load_tokenizer

        options = _options(recipe)
        tokenizer = load_tokenizer(recipe.model, lambda: _texts(tables["train"]), publish=publish)
        kit = Kit(recipe, tokenizer, {}, tables)
        limit = usable_length(options.max_source_length, tokenizer, load_config(recipe.model))
        encoder = _Encoder(tokenizer, options.prefix, limit, options.max_target_length, options.on_long)
        for name, table in tables.items():
            kit.examples[name] = self._encode(kit, table, encoder)
        return kit

    def _encode(self, kit: Kit, table: Table, encoder: _Encoder) -> Examples:
        from finetune.data.prepare.encode import encode
        from finetune.models.tokenizer import fingerprint

        asked = [CARD.name, 1, encoder.prefix, encoder.limit, encoder.target_limit, encoder.on_long]
        examples: Examples = encode(
            table,
            encoder,
            key=json.dumps([fingerprint(kit.processor), *asked]),
            on_bad_row=kit.recipe.data.on_bad_row,
            cost=lambda example: len(example["input_ids"]) + len(example["labels"]),
        )
        examples, dropped = drop_marked(examples)
        describe_lengths(kit, table.name, examples, encoder.limit + encoder.target_limit, dropped)
        return examples

    def build(self, kit: Kit) -> nn.Module:
        """The encoder-decoder model; all ranks call it."""
        from transformers import AutoModelForSeq2SeqLM

        from finetune.models.adapters import add_adapter
        from finetune.models.load import choose_dtype, load_config, load_model
        from finetune.models.tokenizer import fresh_settings, new_token_ids, set_padding

        recipe, tokenizer = kit.recipe, kit.processor
        settings = fresh_settings(recipe.model, tokenizer)
        if settings and "decoder_start_token_id" not in recipe.model.config:
            settings["decoder_start_token_id"] = tokenizer.pad_token_id
        model, loading = load_model(
            AutoModelForSeq2SeqLM,
            recipe.model,
            load_config(recipe.model, **settings),
            dtype=choose_dtype(recipe),
            seed=recipe.seed,
            vocabulary=len(tokenizer),
        )
        kit.facts.update(loading.facts())
        set_padding(model, tokenizer)
        if recipe.adapter is not None:
            model = add_adapter(
                model,
                recipe.adapter,
                "SEQ_2_SEQ_LM",
                [],
                seed=recipe.seed,
                new_tokens=new_token_ids(recipe.model, tokenizer, loading.grown),
            )
        return model

    def collate(self, kit: Kit, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"input_ids": [5, 6, 1], "labels": [7, 1]}] -> input_ids [[5, 6, 1, 0, 0, 0, 0, 0]], labels [[7, 1, -100, ...]].

        The decoder's inputs are made of the labels by the model (`forward`), each family in its own way.
        """
        import numpy as np
        import torch

        from finetune.models.losses import IGNORE

        inputs, padding = pad_rows(examples, kit.processor.pad_token_id)
        lengths = [len(example["labels"]) for example in examples]
        labels = np.full((len(examples), padded_width(max(lengths))), IGNORE, np.int64)
        for row, example in zip(labels, examples, strict=True):
            row[: len(example["labels"])] = example["labels"]
        return Batch(
            ids=tuple(int(example["id"]) for example in examples),
            inputs=inputs,
            targets={"labels": torch.from_numpy(labels), "units": sum(lengths)},
            padding=padding + labels.size - sum(lengths),
            positions=inputs["input_ids"].numel() + labels.size,
        )

    def weight(self, batch: Batch) -> int:
        """Target tokens."""
        return int(batch.targets["units"])

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, T, V]."""
        bare: Any = getattr(model, "module", model)
        decoder = bare.prepare_decoder_input_ids_from_labels(labels=batch.targets["labels"])
        return model(**batch.inputs, decoder_input_ids=decoder, use_cache=False)

    def loss_sum(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over target tokens, with training.label_smoothing."""
        from finetune.models.losses import cross_entropy_sum

        logits, labels = outputs.logits.flatten(0, 1), batch.targets["labels"].flatten()
        return cross_entropy_sum(logits, labels, label_smoothing=kit.recipe.training.label_smoothing)

    def predict(self, kit: Kit, outputs: Any, batch: Batch) -> list[Prediction]:
        """Loss and target tokens of each example; source and target as text, cut short."""
        from finetune.models.losses import IGNORE, cross_entropy_each

        labels = batch.targets["labels"]
        losses = cross_entropy_each(outputs.logits.detach().flatten(0, 1), labels.flatten()).view(labels.shape)
        sums, counts = losses.double().sum(dim=1).tolist(), (labels != IGNORE).sum(dim=1).tolist()
        sources, targets = self._sources(kit, batch), self._targets(kit, batch)
        return [
            Prediction(
                id,
                {"loss": loss, "weight": count},
                loss,
                count,
                {"source": source[:SHOWN_CHARACTERS], "target": target[:SHOWN_CHARACTERS]},
            )
            for id, loss, count, source, target in zip(batch.ids, sums, counts, sources, targets, strict=True)
        ]

    def generate(self, kit: Kit, model: nn.Module, batch: Batch, *, synced: bool) -> list[Mapping[str, str]]:
        """What the model makes of each source, beside the target; see Task."""
        from transformers import GenerationConfig

        bare: Any = getattr(model, "module", model)
        options, tokenizer = _options(kit.recipe), kit.processor
        made = bare.generate(
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
        texts = tokenizer.batch_decode(made.tolist(), skip_special_tokens=True)
        return [
            {"text": text.strip(), "reference_text": target}
            for text, target in zip(texts, self._targets(kit, batch), strict=True)
        ]

    def _sources(self, kit: Kit, batch: Batch) -> list[str]:
        rows = [row.tolist() for row in batch.inputs["input_ids"].cpu()]
        return [text.strip() for text in kit.processor.batch_decode(rows, skip_special_tokens=True)]

    def _targets(self, kit: Kit, batch: Batch) -> list[str]:
        rows = [row[row >= 0].tolist() for row in batch.targets["labels"].cpu()]
        return [text.strip() for text in kit.processor.batch_decode(rows, skip_special_tokens=True)]

    def sample(
        self, kit: Kit, model: nn.Module, examples: Sequence[dict[str, Any]], *, synced: bool
    ) -> list[dict[str, str]]:
        """Sources with the expected and the generated text."""
        with eval_mode(model) as device:
            batch = self.collate(kit, examples).to(device)
            written = self.generate(kit, model, batch, synced=synced)
        rows = zip(batch.ids, self._sources(kit, batch), written, strict=True)
        return [
            {"id": str(id), "input": source, "expected": made["reference_text"], "predicted": made["text"]}
            for id, source, made in rows
        ]


class _Encoder:
    """A row -> {"input_ids", "labels"}, both ended by the end-of-text token; picklable."""

    def __init__(self, tokenizer: Any, prefix: str, limit: int, target_limit: int, on_long: str) -> None:
        self.tokenizer, self.prefix, self.limit = tokenizer, prefix, limit
        self.target_limit, self.on_long = target_limit, on_long

    def __call__(self, row: Row) -> dict[str, Any]:
        source = self._ended(self.tokenizer(self.prefix + row_text(row, "source"), verbose=False)["input_ids"])
        target = self._ended(self.tokenizer(text_target=row_text(row, "target"), verbose=False)["input_ids"])
        for name, ids, limit in (("source", source, self.limit), ("target", target, self.target_limit)):
            if len(ids) > limit and self.on_long == "drop":
                return {"input_ids": [], "labels": []}
            if len(ids) > limit and self.on_long == "error":
                raise BadRow(f"{name}: {len(ids)} tokens, more than options.max_{name}_length {limit}")
        return {"input_ids": self._cut(source, self.limit), "labels": self._cut(target, self.target_limit)}

    def _ended(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return list(ids) if eos is None or (ids and ids[-1] == eos) else [*ids, eos]

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        """The end mark stays, so that the model learns to end."""
        return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def _texts(table: Table) -> Iterator[str]:
    """Training texts for a tokenizer that is trained on them."""
    for row in table:
        yield from (str(row[role]) for role in ("source", "target") if row.get(role) is not None)


def _options(recipe: Recipe) -> Seq2SeqOptions:
    assert isinstance(recipe.options, Seq2SeqOptions)
    return recipe.options
