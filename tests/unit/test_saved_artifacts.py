"""Artifacts that cannot be written into the run folder end in a sentence with the folder, not in shutil's list of errors."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from finetune.app.workers.preparing import ARTIFACTS, PreparedData
from finetune.errors import FinetuneError
from finetune.tasks.artifacts import FILE


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    processor = tmp_path / "prepared" / ARTIFACTS / "processor"
    processor.mkdir(parents=True)
    (processor / "tokenizer.json").write_bytes(bytes(100_000))
    (processor.parent / FILE).write_text("{}", encoding="utf-8")
    nothing: Any = None
    prepared = PreparedData(tmp_path / "prepared", nothing, nothing, nothing, [], {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(FinetuneError) as failed:
            prepared.save_artifacts(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(failed.value).startswith(f"{tmp_path / 'run'}: cannot write: File too large")
    prepared.save_artifacts(tmp_path / "run")
    assert (tmp_path / "run" / "processor" / "tokenizer.json").stat().st_size == 100_000
