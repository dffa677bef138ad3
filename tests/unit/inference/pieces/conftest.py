"""Tasks with artifacts of tiny data, prepared once, and the way of rows through a splitter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from finetune.data.bad_rows import BadRow
from finetune.inference.answering import PIECE, Answered, Part
from tests.contract.examples import EXAMPLES
from tests.prepared import Prepared, prepare


@pytest.fixture(scope="session")
def prepared_task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Prepared]]:
    """(task, **options) -> what it derived from its tiny example."""
    made: dict[str, Prepared] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

        def of(task: str, model: Any = None, **options: Any) -> Prepared:
            name = json.dumps([task, model, options], sort_keys=True)
            if name not in made:
                example = next(example for example in EXAMPLES if example.task == task)
                values = example.recipe(tmp_path_factory.mktemp(task), options={**example.options, **options})
                made[name] = prepare({**values, "model": model or values["model"]})
            return made[name]

        yield of


def split_and_load(splitter: Any, rows: Sequence[dict[str, Any]], *, with_targets: bool = False) -> list[list[Any]]:
    """The examples of each row, as a model gets them; a BadRow where `load` gives one."""
    loaded = []
    for number, examples in enumerate(splitter.split(rows, with_targets=with_targets)):
        assert not isinstance(examples, BadRow), examples
        assert json.loads(json.dumps([one.get(PIECE) for one in examples])) == [one.get(PIECE) for one in examples]
        loaded.append(splitter.load([{**example, "id": number} for example in examples]))
    return loaded


def answer_with(prepared: Prepared, examples: Sequence[dict[str, Any]], model: Any) -> list[Part]:
    """Parts of one row, each answered alone. model: batch -> outputs, or the outputs."""
    parts = []
    for example in examples:
        batch = prepared.task.collate(prepared.artifacts, [example])
        outputs = model(batch) if callable(model) else model
        (answer,) = prepared.answers(outputs, batch)
        score = prepared.scores(outputs, batch)[0] if batch.targets else None
        parts.append(Part(json.loads(json.dumps(example[PIECE])), Answered(answer, score)))
    return parts


def equal_examples(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """The same keys and values, arrays to the last bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
