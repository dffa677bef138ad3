"""run.json of strangers: values of another kind than those that were written are refused by their place."""

import pytest

from finetune.tracking.run_shape import MAX_WHOLE, check_run

RUN = {
    "id": "x",
    "status": "done",
    "process": None,
    "sessions": [{"started": 1.5, "start_step": 0, "step": None}],
    "facts": {"ranks": 2, "other": [1]},
    "data": {"train": {"rows": 3, "files": [{"name": "a"}]}},
    "own": {"a": 1},
}


def test_what_was_written_is_kept_and_null_in_place_of_an_object_is_left_out():
    assert check_run(RUN) == RUN
    assert check_run({"facts": None, "sessions": None, "process": None}) == {"process": None}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "it is not an object"),
        ({"facts": [1]}, "facts is not an object"),
        ({"sessions": {}}, "sessions is not a list"),
        ({"sessions": [None]}, r"sessions\[0\] is not an object"),
        ({"sessions": [{}, {"started": "x"}]}, r"sessions\[1\]\.started is not a number"),
        ({"sessions": [{"started": float("inf")}]}, r"sessions\[0\]\.started is not a number"),
        ({"summary": {"best_step": 1.5}}, r"summary\.best_step is not a whole number"),
        ({"summary": {"best_step": True}}, r"summary\.best_step is not a whole number"),
        ({"facts": {"total_steps": MAX_WHOLE + 1}}, r"facts\.total_steps is not a whole number"),
        ({"name": 5}, "name is not text"),
        ({"machine": {"gpus": [1]}}, r"machine\.gpus\[0\] is not text"),
    ],
)
def test_another_kind_is_refused_by_its_place(value, says):
    with pytest.raises(ValueError, match=says):
        check_run(value)
