"""Causal language models: supervised fine-tuning on instructions, prompts, conversations and plain text.

Shapes: B examples, L tokens (padded on the right to the longest of the micro-batch), V vocabulary.
Unit of loss: one supervised token, that is a label at position 1 or later which is not masked (-100); the token at
position t is predicted from those before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from finetune.data.table import Examples, Row, Table
from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe
from finetune.recipe.section import Section
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.task import Batch, Kit, Prediction
from finetune.tasks.text.chat import ensure_template
from finetune.tasks.text.lengths import describe_lengths, pad_rows, usable_length
from finetune.tasks.text.row_formats import RowEncoder, row_texts
from finetune.tasks.text.selection import SplitExamples, drop_marked

if TYPE_CHECKING:
    import torch
    from torch import nn

SHOWN_CHARACTERS = 400


class CausalLMOptions(Section):
    format: Literal["auto", "alpaca", "prompt_completion", "messages", "text"] = Field(
        default="auto", description="What a row is; auto: by the columns that it has."
    )
    template: Literal["auto", "plain"] = Field(
        default="auto",
        description="auto: the tokenizer's chat template where it has one; plain: Alpaca's headings, and prompt and "
        "completion as they are. Either is saved with the tokenizer.",
    )
    system: str = Field(default="", description="System prompt of every conversation that has none of its own.")
    train_on: Literal["reply", "all"] = Field(
        default="reply", description="Tokens that are learnt: the assistant's replies with their end, or all."
    )
    max_length: int = Field(default=1024, ge=8, description="Tokens of an example at most, the model's limit besides.")
    on_long: Literal["truncate", "drop", "split", "error"] = Field(
        default="truncate",
        description="A longer one: cut its end, leave the example out (counted), go on with the rest as examples of "
        "their own, or a bad row.",
    )
    reply_length: int = Field(
        default=128,
        ge=1,
        description="Tokens generated at most: for samples in the report, and for metrics that judge replies.",
    )


CARD = TaskCard(
    name="causal_lm",
    summary="Fine-tune a language model on instructions, prompts, conversations or plain text.",
    columns={
        "messages": "A conversation: a list of role and content (or from and value).",
        "instruction": "Alpaca: what is asked.",
        "input": "Alpaca: what it is asked of; may be empty.",
        "output": "Alpaca: the reply.",
        "prompt": "What the model is given.",
        "completion": "What it should go on with.",
        "text": "Plain text, learnt whole.",
        "system": "System prompt of this row.",
    },
    required=(("messages", "instruction", "prompt", "text"),),
    metrics=("perplexity", "exact_match", "rouge1", "rouge2", "rouge_l", "chrf", "sacrebleu"),
    default_metrics=("perplexity",),  # the others judge replies, which must be generated first: slow
    best="perplexity",
    unit="token",
    options=CausalLMOptions,
    micro_batch=8,
    packing="padding_free",
    packings=("none", "padding_free", "packed"),
    splits=("tensor",),
)


class CausalLM:
    """The task; see Task for what each method promises."""

    card = CARD

    def read(self, recipe: Recipe, tables: dict[str, Table]) -> Kit:
        """Tokenizer with its chat template, encoded examples. Raises: UserError for bad rows."""
        from finetune.data.prepare.cache import publish
        from finetune.models.config import load_config
        from finetune.models.tokenizer import load_tokenizer

        options = _options(recipe)
        tokenizer = load_tokenizer(recipe.model, lambda: _texts(tables["train"], options.format), publish=publish)
        own_template = ensure_template(tokenizer, plain=options.template == "plain")
        kit = Kit(recipe, tokenizer, {}, tables)
        kit.facts["chat template"] = "the tokenizer's own" if own_template else "plain (Alpaca's headings)"
        limit = usable_length(options.max_length, tokenizer, load_config(recipe.model))
        kit.packing = CARD.packing if recipe.data.packing == "auto" else recipe.data.packing
        kit.capacity = limit if recipe.data.capacity == "auto" else recipe.data.capacity
        if kit.packing != "none":
            limit = min(limit, kit.capacity)
        encoder = RowEncoder(
            tokenizer,
            form=options.format,
            own_template=own_template,
            system=options.system,
            train_on=options.train_on,
            limit=limit,
            on_long=options.on_long,
        )
        for name, table in tables.items():
            kit.examples[name] = self._encode(kit, table, encoder)
        return kit

    def _encode(self, kit: Kit, table: Table, encoder: RowEncoder) -> Examples:
        from finetune.data.prepare.encode import encode
        from finetune.models.tokenizer import fingerprint

        examples: Examples = encode(
            table,
            encoder,
            key=json.dumps([CARD.name, 1, fingerprint(kit.processor), encoder.settings]),
            on_bad_row=kit.recipe.data.on_bad_row,
            cost=lambda example: len(example["input_ids"]),
        )
        examples, dropped = drop_marked(examples)
        if encoder.on_long == "split":
            examples = SplitExamples(examples, encoder.limit)
        describe_lengths(kit, table.name, examples, encoder.limit, dropped)
        return examples

    def build(self, kit: Kit) -> nn.Module:
        """The language model, ready to stop where replies end. All ranks call it."""
        from transformers import AutoModelForCausalLM

        from finetune.models.adapters import add_adapter
        from finetune.models.load import choose_dtype, load_config, load_model
        from finetune.models.tokenizer import fresh_settings, new_token_ids, set_padding

        recipe, tokenizer = kit.recipe, kit.processor
        model, loading = load_model(
            AutoModelForCausalLM,
            recipe.model,
            load_config(recipe.model, **fresh_settings(recipe.model, tokenizer)),
            dtype=choose_dtype(recipe),
            seed=recipe.seed,
            vocabulary=len(tokenizer),
        )
        kit.facts.update(loading.facts())
        set_padding(model, tokenizer)
        self._prepare_packing(kit, model)
        generation: Any = model.generation_config
        if generation is not None:
            generation.eos_token_id, generation.pad_token_id = self._stops(kit), tokenizer.pad_token_id
        if recipe.adapter is not None:
            model = add_adapter(
                model,
                recipe.adapter,
                "CAUSAL_LM",
                [],
                seed=recipe.seed,
                new_tokens=new_token_ids(recipe.model, tokenizer, loading.grown),
            )
        return model

    def _prepare_packing(self, kit: Kit, model: nn.Module) -> None:
        """Attention that stays inside examples. A model that cannot is padded, unless the recipe insists on packing."""
        from finetune.errors import UserError
        from finetune.models.segmented import use_segmented_attention

        if kit.packing == "none":
            return
        try:
            use_segmented_attention(model)
        except UserError as error:
            if kit.recipe.data.packing != "auto":
                raise
            kit.packing, kit.facts["packing"] = "none", f"none: {error.what}"

    def _stops(self, kit: Kit) -> list[int]:
        """Tokens at which generation ends: end of text, and the chat template's end of turn."""
        from finetune.tasks.text.chat import ChatEncoder

        eos = kit.processor.eos_token_id
        return sorted({*ChatEncoder(kit.processor).end_of_turn(), *([] if eos is None else [eos])})

    def collate(self, kit: Kit, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"input_ids": [5, 6, 7, 2], "spans": [2, 4]}] -> input_ids [[5, 6, 7, 2, 0, 0, 0, 0]],
        labels [[-100, -100, 7, 2, -100, -100, -100, -100]]; laid end to end in one row where kit.packing says so.
        """
        if kit.packing != "none":
            return self._collate_packed(examples)
        import numpy as np

        from finetune.models.losses import IGNORE

        inputs, padding = pad_rows(examples, kit.processor.pad_token_id)
        labels = np.full(tuple(inputs["input_ids"].shape), IGNORE, np.int64)
        for row, example in zip(labels, examples, strict=True):
            for start, end in np.asarray(example["spans"]).reshape(-1, 2):
                row[start:end] = example["input_ids"][start:end]
        labels[:, 0] = IGNORE  # nothing stands before the first token to predict it from
        return self._batch(examples, inputs, labels, padding)

    def _collate_packed(self, examples: Sequence[dict[str, Any]]) -> Batch:
        import numpy as np

        from finetune.models.losses import IGNORE
        from finetune.tasks.text.padding_free import pack_rows

        inputs, borders = pack_rows(examples)
        labels = np.full((1, borders[-1]), IGNORE, np.int64)
        for border, example in zip(borders, examples, strict=False):
            for start, end in np.asarray(example["spans"]).reshape(-1, 2):
                labels[0, border + start : border + end] = example["input_ids"][start:end]
        labels[0, borders[:-1]] = IGNORE  # the token before it belongs to another example
        return self._batch(examples, inputs, labels, padding=0)

    def _batch(self, examples: Sequence[dict[str, Any]], inputs: dict[str, Any], labels: Any, padding: int) -> Batch:
        from finetune.tasks.text.supervised_tokens import supervised_targets

        targets = supervised_targets(labels)
        return Batch(
            ids=tuple(int(example["id"]) for example in examples),
            inputs=inputs,
            targets={
                **targets,
                "units": len(targets["wanted"]),
                "reply_starts": [int(example["reply_start"]) for example in examples],
            },
            padding=padding,
            positions=labels.size,
        )

    def weight(self, batch: Batch) -> int:
        """Supervised tokens."""
        return int(batch.targets["units"])

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, L, V]."""
        return model(**batch.inputs, use_cache=False)

    def loss_sum(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over supervised tokens."""
        from finetune.models.losses import cross_entropy_sum
        from finetune.tasks.text.supervised_tokens import supervised_logits

        return cross_entropy_sum(supervised_logits(outputs, batch), batch.targets["wanted"])

    def predict(self, kit: Kit, outputs: Any, batch: Batch) -> list[Prediction]:
        """Loss and supervised tokens of each example; its text, cut short."""
        import torch

        from finetune.models.losses import cross_entropy_each
        from finetune.tasks.text.supervised_tokens import supervised_logits

        each = cross_entropy_each(supervised_logits(outputs, batch).detach(), batch.targets["wanted"])
        rows = batch.targets["places"] // batch.targets["labels"].shape[1]
        if "cu_seq_lens_q" in batch.inputs:  # one row, and an example between two borders
            rows = torch.bucketize(batch.targets["places"] + 1, batch.inputs["cu_seq_lens_q"].long(), right=True) - 1
        losses = torch.zeros(len(batch.ids), dtype=torch.float64, device=each.device)
        sums = losses.index_add(0, rows, each.double()).tolist()
        counts = torch.bincount(rows, minlength=len(sums)).tolist()
        weights = counts
        return [
            Prediction(id, {"loss": loss, "weight": weight}, loss, weight, shown)
            for id, loss, weight, shown in zip(batch.ids, sums, weights, self._shown(kit, batch), strict=True)
        ]

    def _rows(self, batch: Batch) -> list[list[int]]:
        """The tokens of each example, whether padded or packed."""
        from finetune.tasks.text.padding_free import segment_rows

        if "cu_seq_lens_q" in batch.inputs:
            return [row.tolist() for row in segment_rows(batch.inputs)]
        ids, mask = batch.inputs["input_ids"].cpu(), batch.inputs["attention_mask"].bool().cpu()
        return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]

    def _shown(self, kit: Kit, batch: Batch) -> list[dict[str, str]]:
        texts = kit.processor.batch_decode(self._rows(batch))
        return [{"text": text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."} for text in texts]

    def generate(self, kit: Kit, model: nn.Module, batch: Batch, *, synced: bool) -> list[Mapping[str, str]]:
        """The last reply of each example, written from what stands before it, beside the expected one; see Task."""
        from finetune.tasks.text.generation import generate_replies

        tokenizer, rows, starts = kit.processor, self._rows(batch), batch.targets["reply_starts"]
        prompts = [row[:start] for row, start in zip(rows, starts, strict=True)]
        wanted = tokenizer.batch_decode(
            [row[start:] for row, start in zip(rows, starts, strict=True)], skip_special_tokens=True
        )
        length = _options(kit.recipe).reply_length
        replies = generate_replies(model, tokenizer, prompts, new_tokens=length, stops=self._stops(kit), synced=synced)
        return [{"text": made, "reference_text": text.strip()} for made, text in zip(replies, wanted, strict=True)]

    def sample(
        self, kit: Kit, model: nn.Module, examples: Sequence[dict[str, Any]], *, synced: bool
    ) -> list[dict[str, str]]:
        """The last reply of each example, generated greedily from what stands before it, beside the expected one."""
        from finetune.tasks.text.generation import generate_replies

        tokenizer, options = kit.processor, _options(kit.recipe)
        prompts = [example["input_ids"][: example["reply_start"]].tolist() for example in examples]
        expected = [example["input_ids"][example["reply_start"] :].tolist() for example in examples]
        with eval_mode(model):
            replies = generate_replies(
                model, tokenizer, prompts, new_tokens=options.reply_length, stops=self._stops(kit), synced=synced
            )
        return [
            {
                "id": str(example["id"]),
                "input": tokenizer.decode(prompt),
                "expected": tokenizer.decode(wanted, skip_special_tokens=True).strip(),
                "predicted": reply,
            }
            for example, prompt, wanted, reply in zip(examples, prompts, expected, replies, strict=True)
        ]


def _texts(table: Table, form: str) -> Iterator[str]:
    """Training texts for a tokenizer that is trained on them."""
    row: Row
    for row in table:
        yield from row_texts(row, form)


def _options(recipe: Recipe) -> CausalLMOptions:
    assert isinstance(recipe.options, CausalLMOptions)
    return recipe.options
