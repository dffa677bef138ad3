"""A language model whose matrices two ranks share, through the whole application: the figures, replies, model and
checkpoints are those of one process; where the matrices cannot be shared, it is said before anything starts.
"""

import json
import random

import pytest

from finetune.errors import Stopped
from tests.e2e import tiny
from tests.e2e.conftest import Ended
from tests.e2e.inside import USR1

STEPS, STOP_AT = 12, 7
SHARED = ("parallel.tensor=2", "parallel.deepspeed=zero1")


@pytest.fixture(scope="module")
def llama(workplace):
    """A recipe for a Llama of two layers, packed, untied, with grouped queries; replies are generated and judged."""
    draw, words = random.Random(2), ["red", "green", "blue", "old", "new", "tall"]
    for name, count in (("train", 40), ("validation", 9)):
        rows = []
        for _ in range(count):
            said = draw.choices(words, k=draw.randint(1, 6))
            rows.append({"prompt": " ".join(said), "completion": " " + " ".join(reversed(said))})
        (workplace / f"turned-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 128, "tie_word_embeddings": False,
    }  # fmt: skip
    return tiny.write_recipe(
        workplace,
        "llama.yaml",
        task="causal_lm",
        model={"source": "llama", "init": "config", "tokenizer": "train:300", "config": config},
        data={"train": "turned-train.jsonl", "validation": "turned-validation.jsonl"},
        options={"reply_length": 8},
        training={
            "global_batch": 8,
            "steps": STEPS,
            "learning_rate": 1e-2,
            "warmup": 2,
            "max_grad_norm": 0.5,
            "epsilon": 1e-6,
        },
        parallel={"deepspeed": "none"},
        evaluation={"every": 6, "metrics": ["perplexity", "chrf"], "best": "loss", "samples": 2},
        checkpoint={"every": 4, "keep": 2},
    ).name


@pytest.fixture(scope="module")
def alone(workers, llama):
    return workers.train(1, "llama-alone", recipe=llama)


@pytest.fixture(scope="module")
def shared(workers, llama):
    return workers.train(2, "llama-shared", *SHARED, recipe=llama)


@pytest.fixture(scope="module")
def replicas(workers, llama):
    """Two replicas of two ranks, which share out the examples of a step and of an evaluation."""
    return workers.train(4, "llama-replicas", *SHARED, recipe=llama)


@pytest.fixture(scope="module")
def winding(workers, llama):
    """Stopped by a signal to the rank that does not lead, and gone on with by one process."""
    with pytest.raises(Ended) as ended:
        workers.train(2, "llama-winding", *SHARED, recipe=llama, signals={STOP_AT: (1, USR1)})
    assert isinstance(ended.value.first, Stopped), ended.value
    return workers.train(1, "llama-winding", recipe=llama)


@pytest.mark.parametrize("run", ["shared", "replicas", "winding"])
def test_the_figures_are_those_of_one_process(request, alone, run):
    run = request.getfixturevalue(run)
    for split in ("train", "validation"):
        ours, theirs = tiny.rows(run, split), tiny.rows(alone, split)
        assert [row["step"] for row in ours] == [row["step"] for row in theirs] != []
        for key in ("loss", "grad_norm", "perplexity", "chrf", "padding_share"):
            seen = [row[key] for row in theirs if key in row]
            assert [row[key] for row in ours if key in row] == pytest.approx(seen, rel=1e-5), key
    assert max(row["grad_norm"] for row in tiny.rows(alone)) > 0.5, "nothing was clipped"
    ours, theirs = (tiny.predictions(found, "validation", STEPS) for found in (run, alone))
    assert ours.keys() == theirs.keys()
    assert all(ours[i]["text"] == theirs[i]["text"] for i in ours)


@pytest.mark.parametrize("run", ["shared", "replicas", "winding"])
def test_the_model_is_that_of_one_process(request, alone, run):
    import torch
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(at / "model") for at in (request.getfixturevalue(run), alone)]
    ours, theirs = (model.state_dict() for model in models)
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        torch.testing.assert_close(
            weights, theirs[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_checkpoint_of_slices_is_exported_by_one_process(workplace, finetune, alone, shared):
    from safetensors.torch import load_file

    finished = finetune("export", shared.name, "--checkpoint", "latest", "--output", "llama-exported")
    assert finished.code == 0, finished.output
    ours, theirs = (load_file(at / "model.safetensors") for at in (workplace / "llama-exported", alone / "model"))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] - theirs[name]).abs().max() < 1e-5 for name in ours)


def test_it_says_what_a_rank_holds(alone, shared):
    plans = [json.loads((run / "plan.json").read_text()) for run in (shared, alone)]
    facts = [json.loads((run / "run.json").read_text()) for run in (shared, alone)]
    assert plans[0]["machine"]["deepspeed"]["tensor_parallel"]["autotp_size"] == plans[0]["machine"]["tensor"] == 2
    assert plans[0]["machine"]["batch"]["replicas"] == 1
    assert 0 < plans[0]["state_bytes"]["weights"] < plans[1]["state_bytes"]["weights"]
    assert "tensor parallel 2" in json.dumps(facts[0])
    assert facts[0] != facts[1]


def test_a_number_of_processes_that_makes_no_replicas_is_refused(workplace, finetune, llama):
    sets = [word for change in SHARED for word in ("--set", change)]
    finished = finetune("train", llama, "--run-dir", "never-shared", "--processes", "3", *sets)
    assert finished.code == 2, finished.output
    assert "3 processes are not a multiple of the 2" in finished.output and "accelerate launch" not in finished.output


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["model.config.num_key_value_heads=1"], "num_key_value_heads 1 of the model is not a multiple of 2"),
        (["model.source=gpt2", "model.config={}"], "a gpt2 model cannot be sliced"),
    ],
)
def test_a_model_that_cannot_be_shared_is_refused_before_anything_starts(workplace, finetune, llama, changes, told):
    sets = [word for change in [*SHARED, *changes] for word in ("--set", change)]
    finished = finetune("train", llama, "--run-dir", "never-shared", *sets)
    assert finished.code == 2, finished.output
    assert told in finished.output and "Traceback" not in finished.output
    assert not (workplace / "never-shared").exists()
