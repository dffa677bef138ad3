"""On CUDA: what a trained model answers does not depend on how it is asked: by one rank or by two that share the GPU, whole, in
slices or in stages, from Python or over HTTP, by continuous batching or by `generate`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import finetune
from tests.contract.examples import EXAMPLES
from tests.distributed.test_slices import PROMPTS, write_model
from tests.distributed.test_staged_answers import random_image, write_classifier
from tests.e2e.test_predict_tasks import OPTIONS, verb_here
from tests.gpu.conftest import GpuRanks, Trained

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(170)]
BUDGETS = {"image_classification": 512, "object_detection": 8192}  # pixels, for several chunks; of texts, tokens: 32
DEVICE = torch.device("cuda")


def train(gpu: GpuRanks, task: str, precision: str) -> tuple[Trained, str]:
    """A run of six steps, and its training rows as --data takes them."""
    example = next(one for one in EXAMPLES if one.task == task)
    values = example.recipe(gpu.folder)
    source = values["data"]["train"]
    rows = source if isinstance(source, str) else source[0]["source"]
    values["data"]["validation"] = source
    values |= {
        "training": {"steps": 6, "global_batch": 8, "learning_rate": example.learning_rate, "precision": precision},
        "evaluation": {"every": 6},
        "tracking": {"wandb": "off"},
    }
    return gpu.train(values, "run"), rows


def predict(gpu: GpuRanks, model: str, rows: str, output: str, *, ranks: int = 1, **options: Any) -> list[Any]:
    options = {"model": model, "data": (rows,), "output": Path(output), **options}
    gpu.pool.run(ranks, verb_here, str(gpu.folder), "predict", **options)
    return [json.loads(line) for line in (gpu.folder / output).read_text().splitlines()]


def same(ours: list[Any], theirs: list[Any], apart: float) -> None:
    """Records with the same words, and numbers that differ by no more than `apart`."""
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        _same_value(one, other, apart)


def _same_value(one: Any, other: Any, apart: float) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _same_value(one[key], other[key], apart)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for item, twin in zip(one, other, strict=True):
            _same_value(item, twin, apart)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=apart, rel=apart)
    else:
        assert one == other


@pytest.mark.parametrize("task", list(dict.fromkeys(one.task for one in EXAMPLES)))
def test_two_ranks_that_share_the_gpu_and_python_say_what_one_rank_says(gpu: GpuRanks, task: str) -> None:
    run, rows = train(gpu, task, "fp32")
    if task == "causal_lm":  # plain text has no prompt that could be answered
        lines = [line for line in Path(rows).read_text().splitlines() if not line.startswith('{"text"')]
        rows = str(gpu.folder / "asked.jsonl")
        Path(rows).write_text("\n".join(lines) + "\n")
    options = {"budget": BUDGETS.get(task, 32), **OPTIONS.get(task, {})}
    one = predict(gpu, "run", rows, "one.jsonl", **options)
    assert all("error" not in record for record in one), one
    two = predict(gpu, "run/model", rows, "two.jsonl", ranks=2, **options)
    same(two, one, 1e-3)
    if task not in ("seq2seq", "causal_lm"):
        words = {"checkpoint": "best", "split": "validation", "sets": [], "processes": None}
        gpu.pool.run(1, verb_here, str(gpu.folder), "evaluate", run=Path("run"), data=[], read=[], name="mine", **words)
        figures = json.loads((run.path / "evaluations" / "mine" / "figures.json").read_text())
        (trained,) = (row for row in run.rows if row["split"] == "validation" and row["step"] == 6)
        names = [name for name in trained if isinstance(figures.get(name), float) and name not in ("epoch", "time")]
        assert "loss" in names
        assert {name: figures[name] for name in names} == pytest.approx(
            {name: trained[name] for name in names}, rel=1e-3, abs=1e-4
        )


@pytest.mark.parametrize("task", ["text_classification", "token_classification", "image_classification", "seq2seq"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_model_in_half_precision_answers(gpu: GpuRanks, task: str, precision: str) -> None:
    """From the training to Python, where it computes on the GPU of this process."""
    run, rows = train(gpu, task, precision)
    exact = predict(gpu, "run/model", rows, "exact.jsonl", precision="fp32", **OPTIONS.get(task, {}))
    half = predict(gpu, "run/model", rows, "half.jsonl", **OPTIONS.get(task, {}))
    assert len(half) == len(exact) == 8 and all("error" not in record for record in half)
    for one, other in zip(half, exact, strict=True):
        if "score" in one and one["label"] == other["label"]:
            assert one["score"] == pytest.approx(other["score"], abs=0.05)
    if task != "seq2seq":
        asked = [json.loads(line) for line in Path(rows).read_text().splitlines()]
        loaded = finetune.load(run.path / "model", precision="bf16" if precision == "bf16" else None)
        found = loaded.predict([{key: row[key] for key in row if key not in ("label", "tags")} for row in asked])
        assert loaded.asked.device.type == DEVICE.type and len(found) == 8
        for one, other in zip(found, half, strict=True):
            if "score" in one and one["label"] == other["label"]:
                assert one["score"] == pytest.approx(other["score"], abs=0.05)


@pytest.mark.parametrize("replies", [False, True], ids=["classes", "replies"])
def test_slices_that_share_the_gpu_say_what_the_whole_model_says(gpu: GpuRanks, replies: bool) -> None:
    write_model(gpu.folder / "model", replies=replies)
    role = "prompt" if replies else "text"
    rows = [{role: f"{first} {second}"} for first in PROMPTS for second in PROMPTS]
    (gpu.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"precision": "fp32", "budget": 64, **({"max_new_tokens": 5} if replies else {})}
    whole = predict(gpu, "model", "rows.jsonl", "whole.jsonl", **options)
    sliced = predict(gpu, "model", "rows.jsonl", "sliced.jsonl", ranks=2, slices=2, **options)
    names = ("row", "text") if replies else ("row", "label", "score")
    same([{name: row[name] for name in names} for row in sliced], [{n: row[n] for n in names} for row in whole], 1e-3)


def test_stages_that_share_the_gpu_say_what_the_whole_model_says(gpu: GpuRanks) -> None:
    write_classifier(gpu.folder / "model", "resnet")
    draw = np.random.default_rng(3)
    for number in range(12):
        random_image(draw).save(gpu.folder / f"{number}.png")
    rows = [{"image": str(gpu.folder / f"{number}.png")} for number in range(12)]
    (gpu.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"precision": "fp32", "top_k": 3}
    whole = predict(gpu, "model", "rows.jsonl", "whole.jsonl", **options)
    staged = predict(gpu, "model", "rows.jsonl", "staged.jsonl", ranks=2, stages=2, **options)
    same(staged, whole, 1e-3)
    assert len({row["score"] for row in whole}) > 6


def write_texts(dtype: torch.dtype) -> dict[str, Any]:
    """What both generators write after the same prompts, and how far each token is from the likeliest."""
    from finetune.inference.generation.opening import open_generator, token_logprobs
    from finetune.inference.generation.requests import GenerationSettings
    from tests.unit.inference.generation.models import V, artifacts, llama

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = llama(hidden_size=64, head_dim=16).to(device, dtype)
    prompts = [[3 + (5 * place + length) % (V - 3) for place in range(length)] for length in (1, 4, 9, 17, 30, 2)]
    generator = open_generator(artifacts(), model)
    try:
        requests = [generator.submit(prompt, GenerationSettings(new_tokens=12)) for prompt in prompts]
        continuous = [list(request.wait(60).tokens) for request in requests]
        method, why = generator.method, generator.why
    finally:
        generator.close()
    expected, short = [], 0.0
    for prompt, tokens in zip(prompts, continuous, strict=True):
        ids = torch.tensor([prompt], device=device)
        made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=[1, 2])
        expected.append(made[0, len(prompt) :].tolist())
        with torch.no_grad():
            whole = torch.tensor([[*prompt, *tokens]], device=device)
            logits = model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
        best = logits.log_softmax(-1).amax(-1).tolist()
        for top, chosen in zip(best, token_logprobs(model, prompt, tokens), strict=True):
            short = max(short, top - chosen)
    return {"method": method, "why": why, "continuous": continuous, "expected": expected, "short": short}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_continuous_batching_writes_what_generate_writes(gpu: GpuRanks, dtype: torch.dtype) -> None:
    (found,) = gpu.pool.run(1, write_texts, dtype)
    assert found["method"] == "continuous batching", found["why"]
    assert found["short"] < (1e-3 if dtype == torch.float32 else 0.5)
    if dtype == torch.float32:
        written = [tokens[: len(wanted)] for tokens, wanted in zip(found["continuous"], found["expected"], strict=True)]
        assert written == [wanted[: len(tokens)] for tokens, wanted in zip(written, found["expected"], strict=True)]
    assert all(map(len, found["continuous"]))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn", "httpx")),
    reason="the packages of the extra `serve` are not installed",
)
def test_a_server_and_python_say_the_same(gpu: GpuRanks) -> None:
    import httpx

    run, _ = train(gpu, "text_classification", "bf16")
    rows = [{"text": text} for text in ("a fine film", "cold and long", "lovely", "")]
    command = [sys.executable, "-m", "finetune", "serve", str(run.path), "--port", "0", "--replicas", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"^serving .*(http://127.0.0.1:\d+)$", line):
                break
        else:
            pytest.fail("".join(said))
        answer = httpx.post(f"{found[1]}/predict", json={"rows": rows}, timeout=60)
        assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert f"on {DEVICE.type}" in "".join(said)
    theirs, ours = answer.json()["predictions"], finetune.load(run.path).predict(rows)
    assert theirs[3]["error"]["kind"] == ours[3]["error"]["kind"] == "empty"
    for one, other in zip(theirs[:3], ours[:3], strict=True):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=2e-2)
