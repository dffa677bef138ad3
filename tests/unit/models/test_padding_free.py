"""Classifiers and taggers on batches without padding: logits and gradients are those of padded rows, for each family that is
said to take them; the others are refused before a model is built.
"""

import inspect

import numpy as np
import pytest
import torch
import transformers

from finetune.errors import UserError
from finetune.models.padding_free import FIRST_TOKEN, LAST_TOKEN, make_padding_free, padding_free_obstacle
from finetune.tasks.text.padding_free import concatenate_rows

PAD = 1
SHAPE = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2, "num_labels": 3,
    "type_vocab_size": 2,
}  # fmt: skip
FAMILIES = {
    "Albert": {"embedding_size": 8},
    "Bert": {},
    "Camembert": {},
    "Data2VecText": {},
    "DistilBert": {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "Electra": {},
    "Ernie": {},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "Llama": {"num_key_value_heads": 1},
    "Mistral": {"num_key_value_heads": 1, "sliding_window": 4},
    "ModernBert": {"local_attention": 8, "sep_token_id": 2, "cls_token_id": 0},
    "Qwen2": {"num_key_value_heads": 1},
    "Qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "Roberta": {},
    "XLMRoberta": {},
}
KINDS = ("ForSequenceClassification", "ForTokenClassification")
LENGTHS = (5, 17, 9, 1, 12, 48)


def config_of(family, **more):
    return getattr(transformers, f"{family}Config")(**{**SHAPE, **FAMILIES.get(family, {}), **more})


def build(family, kind):
    torch.manual_seed(0)
    model = getattr(transformers, family + kind)(config_of(family)).double().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def make_rows(with_types):
    """Two of the texts hold the padding token, one at its end: padded rows pass over it, and so must the others."""
    draw = np.random.default_rng(1)
    rows = [{"input_ids": draw.integers(3, 50, size=length)} for length in LENGTHS]
    rows[1]["input_ids"][3] = rows[2]["input_ids"][-1] = PAD
    if with_types:
        rows = [{**row, "token_type_ids": np.arange(len(row["input_ids"])) > 3} for row in rows]
    return rows


def pad(rows):
    shape = len(rows), max(LENGTHS)
    inputs = {"input_ids": torch.full(shape, PAD), "attention_mask": torch.zeros(shape, dtype=torch.int64)}
    if "token_type_ids" in rows[0]:
        inputs["token_type_ids"] = torch.zeros(shape, dtype=torch.int64)
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        inputs["attention_mask"][number, :length] = 1
        for name, values in row.items():
            inputs[name][number, :length] = torch.as_tensor(values)
    return inputs


def test_every_family_is_tried():
    kinds = {config_of(family).model_type for family in FAMILIES}
    assert {*FIRST_TOKEN, *LAST_TOKEN} <= kinds and len(kinds) == len(FAMILIES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_padded_rows(family, kind):
    model = build(family, kind)
    types = getattr(model.config, "type_vocab_size", 0) > 1 and "Roberta" not in family
    types = types and "token_type_ids" in inspect.signature(model.forward).parameters
    rows = make_rows(types and family not in ("Camembert", "Data2VecText"))
    padded = pad(rows)
    held = padded["attention_mask"].bool() if kind == KINDS[1] else slice(None)
    expected = model(**padded).logits[held]
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    make_padding_free(model)
    inputs, _ = concatenate_rows(rows)
    found = model(**inputs).logits
    found = found[0] if kind == KINDS[1] else found
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    (found * weights).sum().backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-7, atol=1e-7, msg=name)
    torch.testing.assert_close(model(**padded).logits[held], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "more", "kinds"),
    [
        ("DebertaV2", {}, KINDS),
        ("EuroBert", {"num_key_value_heads": 2}, KINDS),
        ("GPTNeoX", {}, KINDS),
        ("MPNet", {}, KINDS),
        ("T5", {}, KINDS),
        ("ModernBert", {"classifier_pooling": "mean"}, KINDS[:1]),
        ("Bert", {"is_decoder": True}, KINDS[:1]),
    ],
)
def test_other_models_are_refused_by_their_class_and_configuration(family, more, kinds):
    for kind in kinds:
        obstacle = padding_free_obstacle(getattr(transformers, family + kind), config_of(family, **more))
        assert isinstance(obstacle, UserError) and obstacle.where == "data.packing"
        assert "data.packing: none" in obstacle.remedy
    mean = config_of("ModernBert", classifier_pooling="mean")
    assert padding_free_obstacle(transformers.ModernBertForTokenClassification, mean) is None


def test_code_that_came_with_a_model_may_read_any_token():
    class BertForSequenceClassification(transformers.BertForSequenceClassification):  # as remote code would call it
        pass

    obstacle = padding_free_obstacle(BertForSequenceClassification, config_of("Bert"))
    assert isinstance(obstacle, UserError) and "it is not known which token" in obstacle.what
