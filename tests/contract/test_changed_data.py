"""Attacks the data under a run of every task: its labels, tokenizer and settings stay, other rows are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune.app.data_changes import describe_data
from finetune.app.kept_files import record_kept_files
from finetune.app.preparation.request import Request, artifacts_digest
from finetune.app.run_contents import run_artifacts
from finetune.app.runs import kept_run
from finetune.app.workers.preparing import prepare as prepare_request
from finetune.data.prepare.progress import Stage
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError
from finetune.tasks import CARDS
from finetune.tracking.atomic_files import publish_json
from finetune.tracking.run import Run
from tests.contract.examples import TinyExample
from tests.prepared import prepare


def change_in_place(path: Path) -> None:
    """Other content of the same size and time: two lines change places, or the last byte of a picture is another."""
    stat, content = path.stat(), path.read_bytes()
    lines = content.splitlines(keepends=True)
    if path.suffix in (".jsonl", ".csv") and len(lines) > 2:
        lines[-2:] = reversed(lines[-2:])
        changed = b"".join(lines)
    elif path.suffix == ".json":
        changed = content.replace(b": ", b" :", 1)
    else:
        changed = content[:-1] + bytes([content[-1] ^ 1])
    assert changed != content and len(changed) == len(content)
    path.write_bytes(changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_run_keeps_what_it_knows_and_refuses_other_rows(example: TinyExample, tmp_path: Path) -> None:
    home = tmp_path / "data"
    home.mkdir()
    values = example.recipe(home)
    prepared = prepare(values)
    recipe, card = prepared.plan.recipe, CARDS[example.task]
    run = Run.create(recipe, tmp_path, path=tmp_path / "run")
    publish_json(run.plan_file, prepared.plan.to_dict())
    prepared.artifacts.save(run.artifacts)
    record_kept_files(run)
    run.update(data=describe_data(open_tables(recipe, card).values()))
    (run.checkpoints / "step-00000001").mkdir()
    (run.checkpoints / "step-00000001" / "manifest.json").write_text("{}")
    kept = kept_run(recipe, run.path, "auto")
    assert kept == run.path
    Request.of(recipe, kept).check_data(describe_data(open_tables(recipe, card).values()))
    before, changed = artifacts_digest(run.artifacts), 0
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        original, stat = path.read_bytes(), path.stat()
        change_in_place(path)
        for request, told in (
            (Request.of(recipe, kept), "the data is not what the run was trained on"),
            (Request.of(recipe, kept, "train"), "the rows of train are not those that the run had"),
        ):
            with pytest.raises(UserError, match=told):
                prepare_request(request, request.names(), Stage())
        now = describe_data(open_tables(recipe, card).values())
        Request.of(recipe, kept, data_changed=True).check_data(now)
        path.write_bytes(original)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        Request.of(recipe, kept).check_data(describe_data(open_tables(recipe, card).values()))
        changed += 1
        if changed == 3:
            break
    assert changed
    home.rename(tmp_path / "gone")
    kept_artifacts = run_artifacts(run, recipe, pytest.fail)
    assert kept_artifacts.settings == prepared.artifacts.settings and artifacts_digest(run.artifacts) == before
