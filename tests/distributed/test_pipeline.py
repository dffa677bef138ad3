"""A model in a pipeline over ranks learns what one process learns that accumulates the same micro-batches: losses,
norms, weights and evaluation; each rank holds its own layers alone; its checkpoints know no layout.
"""

import pytest
import torch

from tests.distributed import pictures

STEPS = 5  # more than an epoch: the last step of it has one micro-batch


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pool(ranks):
    import os

    return ranks.options(open_group=False, timeout=120, environment={"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]})


def same(ours, theirs, *, weights=1e-5):
    """Losses, norms, evaluation and weights of two runs agree to rounding."""
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert ours["norms"] == pytest.approx(theirs["norms"], rel=1e-4)
    assert ours["evaluation"] == pytest.approx(theirs["evaluation"], rel=1e-4, abs=1e-5)
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, tensor in theirs["weights"].items():
        assert torch.allclose(ours["weights"][name], tensor, rtol=1e-4, atol=weights), name


@pytest.mark.parametrize("model", ["resnet", "convnext", "vit"])
def test_two_stages_learn_what_one_process_learns(pool, tmp_path, model):
    (one,) = pool.run(1, pictures.train, pictures.recipe(model), tmp_path / "one", STEPS)
    first, last = pool.run(2, pictures.train, pictures.recipe(model, pipeline=2), tmp_path / "two", STEPS)
    same(first, one)
    assert last["losses"] == first["losses"] and last["norms"] == first["norms"]  # told alike on every rank
    assert last["weights"] is None
    assert first["count"] == pictures.VALIDATION_ROWS
    whole = one["held"]
    assert first["held"] + last["held"] == whole and 0 < first["held"] < whole
    assert first["moments"] + last["moments"] < one["moments"] + 100  # but for a step count a tensor
    assert all(seconds > 0 for seconds in (*first["idle"], *last["idle"]))
