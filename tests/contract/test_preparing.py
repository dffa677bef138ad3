"""Every task: what is encoded can be sent to worker processes, and ranks map the same examples that were prepared."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.app.workers.prepared_datasets import load_datasets, write_datasets
from finetune.data.prepare import encode as encode_module
from tests.contract.examples import TinyExample
from tests.prepared import prepare


def test_workers_can_be_sent_what_they_compute(
    example: TinyExample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, write = [], encode_module._write

    def sent(folder: Path, job: Any) -> None:
        jobs.append(pickle.dumps(job))
        write(folder, pickle.loads(jobs[-1]))

    monkeypatch.setattr(encode_module, "_write", sent)
    prepared = prepare(example.recipe(tmp_path))
    assert len(jobs) >= len(prepared.datasets) > 0


def test_ranks_map_the_examples_that_were_prepared(example: TinyExample, tmp_path: Path) -> None:
    datasets = prepare(example.recipe(tmp_path)).datasets
    write_datasets(tmp_path, datasets)
    mapped = load_datasets(tmp_path)
    assert mapped.keys() == datasets.keys()
    for name, examples in datasets.items():
        found = mapped[name]
        assert len(found) == len(examples) > 0
        assert np.array_equal(found.ids, examples.ids) and np.array_equal(found.costs, examples.costs)
        assert same(found[len(found) - 1], examples[len(examples) - 1])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other)) if hasattr(one, "shape") else one == other
