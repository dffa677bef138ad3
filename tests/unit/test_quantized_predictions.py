"""Predictions of a model whose weights are quantized while it is loaded, with and without an adapter that is not merged.

bitsandbytes computes both on a CPU. The answers are those of plain matrices with the values that the packed ones stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import finetune
from finetune.app.export import export
from finetune.errors import UserError
from tests.contract.examples import EXAMPLES
from tests.prepared import prepare
from tests.stored_runs import store_run, trained_like

bnb = pytest.importorskip("bitsandbytes", reason="pip install 'finetune[quantized]'")
torch.set_num_threads(1)
TEXTS = ["a fine film", "dull", "the best of the year, by far", "I slept and slept and slept", "cold"]
PACKED = {"4bit": bnb.nn.Linear4bit, "8bit": bnb.nn.Linear8bitLt}
CLOSE = {"4bit": 2e-3, "8bit": 2e-2}  # 8 bits: what is multiplied is rounded to 8 bits as well


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model folder of a text classifier."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        example = next(example for example in EXAMPLES if example.task == "text_classification")
        prepared = prepare(example.recipe(folder))
        export(
            store_run(prepared, trained_like(prepared.build()), folder),
            output=folder / "model",
            checkpoint="best",
            merge=False,
        )
        yield folder / "model"


def scores_of(model: Any) -> torch.Tensor:
    records = model.predict(TEXTS, top_k=2)
    return torch.tensor([[one["score"] for one in sorted(r["labels"], key=lambda one: one["label"])] for r in records])


def unpack(module: nn.Module) -> int:
    """Plain matrices in place of packed ones, by the values that these stand for; their number."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, tuple(PACKED.values())):
                plain = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                eye = torch.eye(child.in_features)
                with torch.no_grad():
                    if isinstance(child, bnb.nn.Linear4bit):
                        weight = bnb.functional.dequantize_4bit(child.weight.data, child.weight.quant_state)
                    else:
                        product = child(eye) - (0 if child.bias is None else child.bias)
                        weight = product.T
                    plain.weight.copy_(weight.reshape(plain.weight.shape))
                    if child.bias is not None:
                        plain.bias.copy_(child.bias)
                setattr(parent, name, plain)
                count += 1
    return count


@pytest.mark.parametrize("quantization", PACKED)
def test_weights_are_packed_as_asked(base: Path, quantization: str) -> None:
    whole, packed = finetune.load(base), finetune.load(base, quantization=quantization)  # type: ignore[arg-type]
    assert whole.asked.digest != packed.asked.digest, "an output of one is not gone on with by the other"
    ours, exact = scores_of(packed), scores_of(whole)
    assert not torch.equal(ours, exact)
    torch.testing.assert_close(ours, exact, atol=0.1, rtol=0)
    assert unpack(packed.asked.module) > 0
    torch.testing.assert_close(ours, scores_of(packed), atol=CLOSE[quantization], rtol=0)


@pytest.mark.parametrize("quantization", PACKED)
def test_an_adapter_stays_beside_packed_weights(base: Path, tmp_path: Path, quantization: str) -> None:
    example = next(example for example in EXAMPLES if example.task == "text_classification")
    model = {"source": str(base), "quantization": quantization}
    adapter = {"rank": 2, "alpha": 16}
    prepared = prepare(example.recipe(tmp_path, model=model, adapter=adapter))
    run = store_run(prepared, trained_adapter(prepared.build()), tmp_path)
    loaded = finetune.load(run)
    kinds = {type(one) for one in loaded.asked.module.modules()}
    assert PACKED[quantization] in kinds, "as in its training"
    names = [name for name, _ in loaded.asked.module.named_parameters()]
    assert any("lora_B" in name for name in names), "not merged"
    ours = scores_of(loaded)
    assert (ours - scores_of(finetune.load(base, quantization=quantization))).abs().max() > 1e-3  # type: ignore[arg-type]
    assert unpack(loaded.asked.module) > 0
    torch.testing.assert_close(ours, scores_of(loaded), atol=CLOSE[quantization], rtol=0)


def trained_adapter(model: Any) -> Any:
    """With weights of the adapter that do something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora" in name:
                weight.normal_(0, 0.3)
    return model


def test_weights_out_of_a_checkpoint_are_not_packed(base: Path) -> None:
    """They are put together after loading. The remedy names what can be given."""
    run = base.parent / "run"
    with pytest.raises(UserError, match="come out of a checkpoint") as refused:
        finetune.load(run, quantization="4bit")
    assert "model/" in refused.value.remedy
