"""A model is opened from the folder of a run, or from an exported one, and says what the trained model said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from finetune.app import machine
from finetune.app.asked_model import AskedModel, open_model
from finetune.app.asked_plan import choose_device
from finetune.app.export import export
from finetune.app.kept_files import record_kept_files
from finetune.app.model_sources import find_model
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError
from finetune.inference.answering import Answered, Chunk
from finetune.models import onednn_linear
from finetune.recipe.trust import is_trusted
from finetune.tasks.artifacts import FILE
from finetune.tracking.run import Run
from tests.contract.examples import EXAMPLES, TinyExample
from tests.prepared import Prepared, prepare
from tests.stored_runs import store_run, trained_like

pytestmark = pytest.mark.usefixtures("own_cache")

torch.set_num_threads(1)
TASKS = {example.task: example for example in EXAMPLES}


def read(example: TinyExample, folder: Path, **changes: Any) -> tuple[Prepared, list[dict[str, Any]]]:
    prepared = prepare(example.recipe(folder, **changes))
    rows = [dict(row) for row in open_tables(prepared.plan.recipe, prepared.task.card)["train"]]
    return prepared, rows


def asked(model: Any, task: Any, artifacts: Any, rows: list[dict[str, Any]]) -> list[Any]:
    """Answers of the task itself, to rows with their targets."""
    encoded = task.encode(artifacts, rows, with_targets=True)
    batch = task.collate(artifacts, [{"id": index, **row} for index, row in enumerate(encoded)])
    with torch.no_grad():
        return [answer.values for answer in task.decode(artifacts, task.forward(model, batch), batch)]


def opened_answers(opened: AskedModel, rows: list[dict[str, Any]]) -> list[Any]:
    encoded = opened.task.encode(opened.artifacts, rows, with_targets=True)
    chunk = Chunk((0, 0), [{"id": index, **row} for index, row in enumerate(encoded)])
    ((_, outcomes),) = opened.batch_answerer().run([chunk])
    assert all(isinstance(outcome, Answered) for outcome in outcomes), outcomes
    return [outcome.answer.values for outcome in outcomes]  # type: ignore[union-attr]


@pytest.mark.parametrize("task", ["text_classification", "image_classification", "object_detection"])
def test_a_run_and_its_export_say_what_the_trained_model_says(task: str, tmp_path: Path) -> None:
    prepared, rows = read(TASKS[task], tmp_path)
    model = trained_like(prepared.build())
    expected = asked(model, prepared.task, prepared.artifacts, rows)
    run = store_run(prepared, model, tmp_path)
    export(run, output=tmp_path / "exported", checkpoint="best", merge=False)
    for file in tmp_path.glob("train.*"):
        file.unlink()
    for source in (run, tmp_path / "exported", str(tmp_path / "exported")):
        opened = open_model(source)
        assert opened_answers(opened, rows) == expected
        assert not opened.module.training and not any(one.requires_grad for one in opened.module.parameters())
        assert opened.device == torch.device("cpu") and opened.autocast is None


def test_linear_layers_take_the_faster_way_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, rows = read(TASKS["text_classification"], tmp_path)
    model = trained_like(prepared.build())
    run = store_run(prepared, model, tmp_path)
    monkeypatch.setattr(onednn_linear, "is_faster_here", lambda: True)
    opened = open_model(run)
    kinds = {type(part) for part in opened.module.modules() if isinstance(part, torch.nn.Linear)}
    assert kinds == {onednn_linear.OneDnnLinear}
    assert opened_answers(opened, rows) == asked(model, prepared.task, prepared.artifacts, rows)


def test_generating_tasks_reply(tmp_path: Path) -> None:
    prepared, _ = read(TASKS["causal_lm"], tmp_path)
    model = trained_like(prepared.build())
    run = store_run(prepared, model, tmp_path)
    opened = open_model(run)
    asked_rows = [{"prompt": "Name a fruit."}, {"prompt": "Say hello."}]
    encoded = opened.task.encode(opened.artifacts, asked_rows, with_targets=False)
    examples = [{"id": index, **row} for index, row in enumerate(encoded)]  # type: ignore[dict-item]
    batch = prepared.task.collate(prepared.artifacts, examples)
    expected = prepared.task.generate(prepared.artifacts, model, batch, synced=False)
    one = opened.batch_answerer()
    ((_, outcomes),) = one.run([Chunk((0, 0), examples)])
    assert [outcome.answer.values["text"] for outcome in outcomes] == [reply["text"] for reply in expected]
    assert one.cost(examples[0]) == len(examples[0]["input_ids"]) + 24, "the reply counts"


@pytest.fixture
def base(tmp_path: Path) -> Callable[[TinyExample], dict[str, Any]]:
    """`model:` of a recipe that starts from weights in a folder."""

    def write(example: TinyExample) -> dict[str, Any]:
        prepared, _ = read(example, tmp_path)
        model: Any = prepared.build()
        model.save_pretrained(tmp_path / "base")
        prepared.artifacts.processor.save_pretrained(tmp_path / "base")
        return {"source": str(tmp_path / "base")}

    return write


def test_an_adapter_is_asked_unmerged(tmp_path: Path, base: Callable[[TinyExample], dict[str, Any]]) -> None:
    example = TASKS["text_classification"]
    prepared, rows = read(example, tmp_path, model=base(example), adapter={"rank": 4}, options={"new_head": True})
    model = trained_like(prepared.build())
    expected = asked(model, prepared.task, prepared.artifacts, rows)
    run = store_run(prepared, model, tmp_path)
    export(run, output=tmp_path / "exported", checkpoint="best", merge=False)
    assert (tmp_path / "exported" / "adapter_config.json").is_file()
    for source in (run, tmp_path / "exported"):
        opened = open_model(source)
        assert any("lora_A" in name for name, _ in opened.module.named_parameters())
        assert opened_answers(opened, rows) == expected


def test_the_checkpoint_is_the_best_unless_told(tmp_path: Path) -> None:
    prepared, _ = read(TASKS["text_classification"], tmp_path)
    run = store_run(prepared, prepared.build(), tmp_path, steps=(1, 2, 3), best=2)
    names = {name: open_model(run, checkpoint=name).name for name in ("best", "latest", "step-00000001")}
    assert names == {
        "best": f"{run} (step-00000002)",
        "latest": f"{run} (step-00000003)",
        "step-00000001": f"{run} (step-00000001)",
    }
    with pytest.raises(UserError, match="no checkpoint step-7"):
        open_model(run, checkpoint="step-7")


def test_the_digest_names_weights_artifacts_and_precision(tmp_path: Path) -> None:
    prepared, _ = read(TASKS["text_classification"], tmp_path)
    model = prepared.build()
    run = store_run(prepared, model, tmp_path, steps=(1,))
    first = open_model(run)
    assert open_model(run).digest == first.digest
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    assert open_model(moved).digest == first.digest, "a copy is the same model"
    assert open_model(run, precision="bf16").digest != first.digest
    artifacts = json.loads((moved / "artifacts" / FILE).read_text())
    artifacts["settings"]["max_length"] = 16
    (moved / "artifacts" / FILE).write_text(json.dumps(artifacts))
    record_kept_files(Run(moved))  # as another training would have
    assert open_model(moved).digest != first.digest
    other = store_run(prepared, trained_like(model), tmp_path / "other")
    assert open_model(other).digest != first.digest


def test_the_precision_is_that_of_the_training_unless_told(tmp_path: Path) -> None:
    prepared, rows = read(TASKS["text_classification"], tmp_path, training={"precision": "bf16"})
    run = store_run(prepared, trained_like(prepared.build()), tmp_path)
    as_trained, in_bf16, in_fp32 = open_model(run), open_model(run, precision="bf16"), open_model(run, precision="fp32")
    dtypes = [next(one.module.parameters()).dtype for one in (as_trained, in_bf16, in_fp32)]
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32]
    assert [one.autocast for one in (as_trained, in_bf16, in_fp32)] == [torch.bfloat16, None, None]
    whole = torch.tensor([row["scores"] for row in opened_answers(in_fp32, rows)])
    for one in (as_trained, in_bf16):
        scores = torch.tensor([row["scores"] for row in opened_answers(one, rows)])
        assert not torch.equal(scores, whole)
        torch.testing.assert_close(scores, whole, atol=0.02, rtol=0)
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        open_model(run, precision="fp16")


def test_on_the_cpu_of_a_machine_with_a_gpu_layers_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = TASKS["causal_lm"]
    prepared, _ = read(example, tmp_path)
    run = store_run(prepared, trained_like(prepared.build()), tmp_path)
    monkeypatch.setattr(machine, "uses_cuda", lambda: True)
    monkeypatch.setattr(machine, "liger_types", lambda: frozenset({"llama"}))
    assert machine.plan_alone(prepared.plan.recipe).machine.kernels == "liger"
    assert open_model(run, device="cpu").plan.machine.kernels == "none"


def test_code_of_the_model_needs_the_callers_word(tmp_path: Path) -> None:
    prepared, _ = read(TASKS["text_classification"], tmp_path)
    run = store_run(prepared, prepared.build(), tmp_path)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["trust_remote_code"] = True
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match="has Python code run that comes with its model") as caught:
        open_model(run)
    assert "--trust-remote-code" in caught.value.remedy
    found = find_model(run, trust_remote_code=True)  # as Python callers and replicas of the server say it
    assert found.recipe.model.trust_remote_code and not is_trusted()


def test_a_model_that_lacks_its_head_is_refused(tmp_path: Path) -> None:
    prepared, _ = read(TASKS["text_classification"], tmp_path)
    model: Any = prepared.build()
    model.base_model.save_pretrained(tmp_path / "body")
    prepared.artifacts.save(tmp_path / "body", processor="")
    with pytest.raises(UserError, match="its answers would be random"):
        open_model(tmp_path / "body")


def test_damage_is_reported(tmp_path: Path) -> None:
    prepared, _ = read(TASKS["text_classification"], tmp_path)
    run = store_run(prepared, prepared.build(), tmp_path)
    (file,) = (run / "checkpoints" / "step-00000001").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="has changed since it was written"):
        open_model(run)
    with pytest.raises(UserError, match="no such folder"):
        open_model("./nowhere")
    with pytest.raises(UserError, match="not a run folder"):
        open_model(tmp_path, checkpoint="latest")


@pytest.mark.parametrize(("device", "count"), [("cuda", 0), ("cuda:1", 0), ("cuda:1", 1)])
def test_a_gpu_that_torch_does_not_see_is_refused(device: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is too old, or a number beyond the last."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError, match=rf"sees {count} GPU") as refused:
        choose_device(device)
    assert str(refused.value).startswith(f"device {device}: ")
    assert choose_device("cpu") == torch.device("cpu")
