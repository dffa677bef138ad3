"""Random and almost valid recipes, data files, manifests, artifacts: each is read, or refused by a UserError that can be shown.

Few inputs here; `make soak` tries for ten minutes (`python -m tests.fuzz`).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.sources.tables import open_split
from finetune.errors import FinetuneError, RecipeFaults, UserError
from finetune.planning.stored import StoredPlan
from finetune.recipe.data import SourceSection
from finetune.recipe.load import load_recipe
from finetune.tasks import CARDS
from finetune.tasks.artifacts import load_artifacts
from finetune.terminal import printable
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import Checkpoint, Manifest, digest_of
from finetune.training.checkpoint_reader import read_checkpoint

from .mutations import mutated_bytes, mutated_tree

INPUTS = int(os.environ.get("FINETUNE_FUZZ_INPUTS", "25"))
SAME = "FINETUNE_FUZZ_INPUTS" not in os.environ  # inputs in each run; `python -m tests.fuzz` looks for new ones
fuzz = settings(
    max_examples=INPUTS,
    derandomize=SAME,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

RECIPE = {
    "name": "fuzzed",
    "task": "text_classification",
    "seed": 1,
    "model": {"source": "someone/some-model", "init": "pretrained", "config": {"num_hidden_layers": 2}},
    "data": {"train": [{"source": "a.csv", "columns": {"text": "t"}, "limit": 5}], "validation_fraction": 0.1},
    "options": {"max_length": 64},
    "training": {"epochs": 1, "global_batch": 32, "learning_rate": 1e-3, "optimizer": "adamw", "betas": [0.9, 0.99]},
    "evaluation": {"metrics": ["accuracy"]},
    "parallel": {"processes": 2, "deepspeed": "zero2"},
    "adapter": {"kind": "lora", "rank": 8},
    "tracking": {"group": "g"},
    "checkpoint": {"keep": 2},
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("FINETUNE_WORKERS", "1")
        yield


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def readable(error: FinetuneError) -> None:
    """The message is one for people: there is one, and as the terminal shows it, it can be encoded."""
    text = printable(error)
    assert text.strip() and text.encode("utf-8")


def load(content: bytes | str, name: str = "r.yaml") -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        try:
            loaded = load_recipe(path, [], CARDS, here=False)
            assert load_recipe_again(loaded.dump_yaml(), Path(folder)) == loaded.recipe
        except (UserError, RecipeFaults) as error:
            readable(error)


def load_recipe_again(text: str, folder: Path) -> Any:
    path = folder / "again.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, [], CARDS, here=False).recipe


@fuzz
@given(mutated_tree(RECIPE))
def test_a_recipe_with_odd_values_is_loaded_exactly_or_refused(tree: Any) -> None:
    load(yaml.safe_dump(tree, allow_unicode=True))


@fuzz
@given(mutated_bytes(yaml.safe_dump(RECIPE).encode()))
def test_a_recipe_of_odd_bytes_is_loaded_or_refused(content: bytes) -> None:
    load(content)


ROWS = [{"text": f'row {i}, with "quotes" and é', "label": "ab"[i % 2]} for i in range(12)]


def csv_bytes(delimiter: str = ",") -> bytes:
    lines = [delimiter.join(("text", "label"))]
    lines += [delimiter.join(('"' + row["text"].replace('"', '""') + '"', row["label"])) for row in ROWS]
    return "\r\n".join(lines).encode()


def parquet_bytes() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


def arrow_bytes() -> bytes:
    import pyarrow as pa

    buffer = io.BytesIO()
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def workbook_bytes() -> bytes:
    import openpyxl

    book, buffer = openpyxl.Workbook(), io.BytesIO()
    book.active.append(["text", "label"])
    for row in ROWS:
        book.active.append(list(row.values()))
    book.save(buffer)
    return buffer.getvalue()


JSONL = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
FILES = {
    "rows.jsonl": JSONL,
    "rows.json": json.dumps(ROWS).encode(),
    "rows.csv": csv_bytes(),
    "rows.tsv": csv_bytes("\t"),
    "rows.parquet": parquet_bytes(),
    "rows.arrow": arrow_bytes(),
    "rows.xlsx": workbook_bytes(),
    "rows.jsonl.gz": gzip.compress(JSONL),
}
CONLL = b"EU B-ORG\nrejects O\nGerman B-MISC\ncall O\n\nPeter B-PER\nBlackburn I-PER\n\n"
COCO = json.dumps(
    {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
        "categories": [{"id": 1, "name": "cell"}],
    }
).encode()
OTHER = {"words.conll": (CONLL, "token_classification"), "boxes.coco.json": (COCO, "object_detection"),
         "plain.txt": (b"a line\nanother\n", "causal_lm")}  # fmt: skip


def read_all(folder: Path, name: str, content: bytes, task: str) -> None:
    path, card = folder / name, CARDS[task]
    path.write_bytes(content)
    try:
        table = open_split("train", [SourceSection(source=str(path))], card, columns={}, on_bad_row="skip")
        assert len(list(table)) == len(table) > 0
        assert all(table.place(index) for index in range(len(table)))
    except UserError as error:
        readable(error)


@pytest.mark.parametrize("name", FILES)
@fuzz
@given(data=st.data())
def test_a_damaged_data_file_is_read_or_refused(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        read_all(Path(folder), name, data.draw(mutated_bytes(FILES[name])), "text_classification")


@pytest.mark.parametrize("name", OTHER)
@fuzz
@given(data=st.data())
def test_a_damaged_file_of_another_task_is_read_or_refused(name: str, data: st.DataObject) -> None:
    content, task = OTHER[name]
    with tempfile.TemporaryDirectory() as folder:
        read_all(Path(folder), name, data.draw(mutated_bytes(content)), task)


MANIFEST = {
    "format": 1,
    "step": 3,
    "loop": {"epoch": 1, "seen": [1, 2]},
    "scalars": {"lr": 0.1},
    "files": {"state-00000-of-00001.safetensors": [4, "0" * 64]},
    "shapes": {"weight": [2, 2]},
    "training": {"seed": 1},
    "recipe_digest": "",
}


def read_manifest(folder: Path, content: bytes) -> None:
    """Whatever it names stays inside the folder."""
    (folder / "state-00000-of-00001.safetensors").write_bytes(b"1234")
    (folder / "manifest.json").write_bytes(content)
    try:
        found = read_checkpoint(folder)
        assert isinstance(found, Checkpoint)
        assert all((folder / name).resolve().parent == folder.resolve() for name in found.manifest.files)
    except UserError as error:
        readable(error)


@fuzz
@given(mutated_tree(MANIFEST))
def test_a_forged_manifest_is_read_or_refused(tree: Any) -> None:
    if isinstance(tree, dict):  # its digest is right, as that of an attacker would be
        tree = json.loads(json.dumps(tree))
        tree["digest"] = digest_of(tree)
    with tempfile.TemporaryDirectory() as name:
        read_manifest(Path(name), json.dumps(tree).encode("utf-8", "surrogatepass"))


@fuzz
@given(mutated_bytes(Manifest(3, {}, {}, {"state-00000-of-00001.safetensors": (4, "0" * 64)}).to_json().encode()))
def test_a_damaged_manifest_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        read_manifest(Path(name), content)


ARTIFACTS = {
    "format": 1,
    "task": "text_classification",
    "processor": "processor",
    "processor_kind": "tokenizer",
    "options": {},
    "classes": {"names": ["a", "b"], "forms": {}},
    "settings": {"max_length": 64},
}


@fuzz
@given(mutated_tree(ARTIFACTS))
def test_damaged_artifacts_are_read_or_refused(tree: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "artifacts.json").write_text(json.dumps(tree), encoding="utf-8", errors="surrogatepass")
        try:
            load_artifacts(Path(name), CARDS["text_classification"])
        except UserError as error:
            readable(error)


PLAN = {
    "training": {"precision": "fp32", "metrics": ["accuracy"], "capacity": 8},
    "machine": {"ranks": 2, "device": "cpu"},
}
RUN = {"id": "x", "name": "n", "task": "text_classification", "status": "done", "sessions": [{"started": 1.0, "start_step": 0}],
       "facts": {}, "summary": {}, "process": {"host": "h", "pid": 1, "started": 1.0}}  # fmt: skip


@fuzz
@given(mutated_tree(PLAN), mutated_tree(RUN))
def test_a_damaged_plan_or_run_is_read_or_refused(plan: Any, run: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8", errors="surrogatepass")
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8", errors="surrogatepass")
        for read in (lambda: StoredPlan.read(folder / "plan.json"), lambda: _describe(Run.open(folder))):
            try:
                read()
            except UserError as error:
                readable(error)


def _describe(run: Run) -> tuple[Any, ...]:
    return run.id, run.name, run.status, run.trainer
