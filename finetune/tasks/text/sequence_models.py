"""What every task shares that reads a text, or a pair of them, and puts a head on the whole: words in, model out.

Used by text classification, sequence regression and reward models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row, Table
from finetune.tasks.task import Batch, Kit

if TYPE_CHECKING:
    from torch import nn

HEAD = "ForSequenceClassification"
SHOWN_CHARACTERS = 400


def encode_texts(tokenizer: Any, texts: Sequence[str], limit: int, on_long: str) -> dict[str, list[int]] | None:
    """One text or a pair -> {"input_ids", "token_type_ids" if the model takes them}; None: too long, to be left out.

    Raises: BadRow if there is no token, or more than `limit` where on_long is error.
    """
    encoded = tokenizer(*texts, verbose=False)
    if len(encoded["input_ids"]) > limit:
        if on_long == "drop":
            return None
        if on_long == "error":
            raise BadRow(f"{len(encoded['input_ids'])} tokens, more than options.max_length {limit}")
        encoded = tokenizer(*texts, truncation=True, max_length=limit, verbose=False)
    if not encoded["input_ids"]:
        raise BadRow("the text holds no token")
    return {key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}


def row_text(row: Row, role: str) -> str:
    """The text of a role. Raises: BadRow if it is none, or empty."""
    value = row[role]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRow(f"{role} is {type(value).__name__}, not text")
    text = str(value)
    if not text.strip():
        raise BadRow(f"{role} is empty")
    return text


def text_and_pair(row: Row) -> list[str]:
    """[text], or [text, text_pair] where the row has one. Raises: BadRow."""
    texts = [row_text(row, "text")]
    if row.get("text_pair") is not None:
        texts.append(row_text(row, "text_pair"))
    return texts


def training_texts(table: Table) -> Iterator[str]:
    """Texts for a tokenizer that is trained on them."""
    for row in table:
        yield from (str(row[role]) for role in ("text", "text_pair") if row.get(role) is not None)


def build_sequence_model(kit: Kit, settings: dict[str, Any], *, new_head: bool) -> nn.Module:
    """A body with a head over the whole sequence, adapters included; all ranks call it.

    settings: of the configuration, such as {"id2label": ..., "problem_type": ...}.
    """
    from transformers import AutoModelForSequenceClassification

    from finetune.models.adapters import add_adapter
    from finetune.models.head import head_names
    from finetune.models.load import load_config, load_model
    from finetune.models.tokenizer import fresh_settings, new_token_ids, set_padding

    recipe, tokenizer = kit.recipe, kit.processor
    config = load_config(recipe.model, **settings, **fresh_settings(recipe.model, tokenizer))
    model, loading = load_model(
        AutoModelForSequenceClassification,
        recipe.model,
        config,
        dtype=kit.plan.weights_dtype,
        seed=recipe.seed,
        new_head=new_head,
        vocabulary=len(tokenizer),
    )
    kit.facts.update(loading.facts())
    set_padding(model, tokenizer, always=True)
    if recipe.adapter is not None:
        model = add_adapter(
            model,
            recipe.adapter,
            "SEQ_CLS",
            head_names(model),
            seed=recipe.seed,
            new_tokens=new_token_ids(recipe.model, tokenizer, loading.grown),
        )
    return model


def as_seen(kit: Kit, batch: Batch, *, special: bool = False) -> list[str]:
    """Each row's text as the model saw it, cut short; special: with marks such as [SEP]."""
    rows = zip(batch.inputs["input_ids"].cpu(), batch.inputs["attention_mask"].cpu(), strict=True)
    kept = [ids[mask.bool()].tolist() for ids, mask in rows]
    return [text[:SHOWN_CHARACTERS] for text in kit.processor.batch_decode(kept, skip_special_tokens=not special)]
