"""Model folders, sweeps and outputs of predictions with odd values in their JSON: each is taken, or refused by a UserError."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.app.sweeping.state import read_state
from finetune.errors import UserError
from finetune.inference.prediction.manifest import Manifest, read_manifest
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.state import State
from finetune.models.adapter_source import find_adapter
from finetune.models.folder_check import check_model_folder

from .mutations import mutated_bytes, mutated_tree
from .test_inputs import fuzz, readable

FILES: dict[str, Any] = {
    "config.json": {
        "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-6,
        "num_key_value_heads": 2, "attention_dropout": 0.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "text_config": {"num_layers": 3, "depths": [1, 2]}, "id2label": {"0": "a"}, "return_dict": True,
    },
    "tokenizer_config.json": {"model_max_length": 512, "tokenizer_class": "X", "added_tokens_decoder": {"0": {"content": "a"}}},
    "tokenizer.json": {"model": {"vocab": {"a": 0, "b": 1234567890}}, "added_tokens": [{"id": 3, "content": "x"}]},
    "model.safetensors.index.json": {"metadata": {"total_size": 5}, "weight_map": {"a": "b.safetensors"}},
    "adapter_config.json": {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "/nowhere",
        "rank_pattern": {"q": 2}, "modules_to_save": ["x"], "lora_dropout": 0.1, "use_dora": False,
    },
    "sweep.json": {
        "recipe": "r.yaml", "created": "2026-11-27", "definition": {"grid": {"seed": [1, 2]}}, "failures": {"trial-01": "x"},
        "trials": [{"name": "trial-01", "values": {"seed": 1}}],
    },
}  # fmt: skip


def look(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / name).write_bytes(content)
        for read in (check_model_folder, lambda path: find_adapter(str(path)), read_state):
            try:
                read(folder)
            except UserError as error:
                readable(error)


@pytest.mark.parametrize("name", FILES)
@fuzz
@given(data=st.data())
def test_odd_values(name: str, data: st.DataObject) -> None:
    look(name, json.dumps(data.draw(mutated_tree(FILES[name]))).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("name", FILES)
@fuzz
@given(data=st.data())
def test_odd_bytes(name: str, data: st.DataObject) -> None:
    look(name, data.draw(mutated_bytes(json.dumps(FILES[name]).encode())))


MANIFEST = {
    "sources": ["a"],
    "identity": [1],
    "model": "m",
    "digest": "d",
    "options": {"task": ""},
    "budget": 1,
    "window_rows": 2,
}
STATE = {"windows": 1, "rows": 5, "position": [1], "scored": 2, "errors": {"a": 1}, "seconds": 1.5, "finished": False}


@fuzz
@given(mutated_tree(MANIFEST), mutated_tree(STATE))
def test_odd_parts_of_an_output(manifest: Any, state: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        parts = Parts(Path(place) / "answers.jsonl")
        parts.folder.mkdir()
        parts.manifest.write_text(json.dumps(manifest), encoding="utf-8", errors="surrogatepass")
        parts.state.write_text(json.dumps(state), encoding="utf-8", errors="surrogatepass")
        for read in (lambda: _differences(parts), lambda: State.read(parts.state).failed_kinds):
            try:
                read()
            except UserError as error:
                readable(error)


def _differences(parts: Parts) -> list[str]:
    return Manifest(["a"], [1], "m", "d", {"task": ""}, 1, 2).differences(read_manifest(parts) or {})
