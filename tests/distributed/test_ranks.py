"""Proves that the pool of ranks runs, cleans, reports and recovers: every distributed test stands on it."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from finetune.errors import UserError
from tests.ranks import RankError


def add_up(start, *, factor=1):
    total = torch.tensor([start + factor * dist.get_rank()])
    dist.all_reduce(total)
    return dist.get_rank(), dist.get_world_size(), os.getpid(), total


class Word:
    """Travels by reference to this file, both ways."""

    def __init__(self, text):
        self.text = text


def answer_word(word):
    return Word(word.text * (1 + dist.get_rank()))


def leave_traces():
    from accelerate import PartialState
    from transformers.models.llama import modeling_llama

    drawn = torch.rand(1).item()
    PartialState(cpu=True)
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = True
    modeling_llama.apply_rotary_pos_emb = None
    return drawn


def find_traces():
    from accelerate.state import AcceleratorState, PartialState
    from transformers.models.llama import modeling_llama

    assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert not PartialState._shared_state and not AcceleratorState._shared_state
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert not torch.backends.cuda.matmul.allow_tf32 and modeling_llama.apply_rotary_pos_emb is not None
    return torch.rand(1).item()


def describe_group():
    return dist.is_initialized(), os.environ["LOCAL_SIZE"], os.environ["WORLD_SIZE"], os.environ.get("EXTRA")


def raise_on(rank):
    print(f"word from {dist.get_rank()}")
    expected = 17
    assert dist.get_rank() != rank, expected
    dist.barrier()


def refuse():
    raise UserError("no such column", where="train.tsv", remedy="rename it")


def die_on(rank):
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGSEGV)
    dist.barrier()


def hang_on(rank):
    if dist.get_rank() == rank:
        time.sleep(1000)
    dist.barrier()


def skip_everywhere():
    pytest.skip("not on a rank")


def open_shared_memory():
    """As DeepSpeed does; the name of the file."""
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK")
    file = Path("/dev/shm") / "_".join(
        ["deepspeed_allreduce_buffer", str(os.getuid()), *(os.environ[name] for name in names)]
    )
    file.touch()
    return file


def answer_lambda():
    return lambda: 1


def train_with_deepspeed(stage):
    """Three steps through Accelerate and a real DeepSpeed engine on random data; the losses."""
    from accelerate import Accelerator, DeepSpeedPlugin, PartialState

    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    PartialState(cpu=True)
    accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
    assert accelerator.num_processes == int(os.environ["WORLD_SIZE"])
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    assert type(model).__name__ == "DeepSpeedEngine"
    x, losses = torch.randn(4, 8, generator=torch.Generator().manual_seed(accelerator.process_index)), []
    for _ in range(3):
        loss = model(x).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
    return losses


def test_results_come_in_order_of_rank_from_processes_that_stay(ranks):
    first = ranks.run(2, add_up, 1, factor=10)
    second = ranks.run(2, add_up, 1)
    assert [(rank, world, total.item()) for rank, world, _, total in first] == [(0, 2, 12), (1, 2, 12)]
    assert [total.item() for *_, total in second] == [3, 3]
    assert [pid for _, _, pid, _ in first] == [pid for _, _, pid, _ in second]
    assert os.getpid() not in {pid for _, _, pid, _ in first}


@pytest.mark.parametrize("n", [1, 3, 4])
def test_every_size_has_its_own_group(ranks, n):
    assert [world for _, world, _, _ in ranks.run(n, add_up, 0)] == [n] * n


def test_classes_of_the_test_file_travel_both_ways(ranks):
    assert [word.text for word in ranks.run(2, answer_word, Word("ab"))] == ["ab", "abab"]


def test_each_call_begins_clean(ranks):
    before = ranks.run(2, leave_traces)
    assert ranks.run(2, find_traces) == pytest.approx(before)  # seeded anew


def test_options_leave_the_group_closed_and_extend_the_environment(ranks):
    special = ranks.options(open_group=False, environment={"EXTRA": "yes"})
    assert special.run(2, describe_group) == [(False, "2", "2", "yes")] * 2
    assert ranks.run(2, describe_group) == [(True, "2", "2", None)] * 2


def test_no_name_of_shared_memory_outlives_its_call(ranks):
    files = ranks.run(2, open_shared_memory)
    assert len(set(files)) == 2 and not any(file.exists() for file in files)


def test_a_failure_shows_traceback_values_and_output_and_the_others_are_freed(ranks):
    start = time.monotonic()
    with pytest.raises(RankError) as caught:
        ranks.run(2, raise_on, 1)
    assert time.monotonic() - start < 20
    text = str(caught.value)
    assert "rank 1 raised" in text and "assert dist.get_rank() != rank" in text and "expected = 17" in text
    assert "word from 1" in text and "rank 0 did not answer" in text and "raise_on" in text
    assert isinstance(caught.value.causes[1], AssertionError)
    assert [total.item() for *_, total in ranks.run(2, add_up, 1)] == [3, 3]


def test_every_rank_that_raised_is_told_with_its_exception(ranks):
    with pytest.raises(RankError) as caught:
        ranks.run(2, refuse)
    assert "rank 0 raised" in str(caught.value) and "rank 1 raised" in str(caught.value)
    assert [str(caught.value.causes[rank]) for rank in (0, 1)] == ["train.tsv: no such column\n  rename it"] * 2


def test_a_death_is_told_with_its_signal(ranks):
    with pytest.raises(RankError, match=rf"rank 1 died \(exit code -{signal.SIGSEGV.value}\)"):
        ranks.run(2, die_on, 1)
    assert len(ranks.run(2, add_up, 1)) == 2


def test_a_hang_is_cut_and_shows_where_all_stood(ranks):
    start = time.monotonic()
    with pytest.raises(RankError) as caught:
        ranks.options(timeout=2).run(2, hang_on, 0)
    assert time.monotonic() - start < 10
    text = str(caught.value)
    assert "no answer from [0, 1] in 2 s" in text
    assert "in hang_on" in text and "barrier" in text
    assert len(ranks.run(2, add_up, 1)) == 2


def test_a_skip_on_the_ranks_skips_the_test(ranks):
    with pytest.raises(pytest.skip.Exception, match="not on a rank"):
        ranks.run(2, skip_everywhere)


def test_what_cannot_travel_is_refused_by_name(ranks):
    with pytest.raises(TypeError, match="module level"):
        ranks.run(2, lambda: 1)
    with pytest.raises(RankError, match="answer_lambda"):
        ranks.run(1, answer_lambda)


def test_the_function_s_own_output_does_not_reach_the_terminal(ranks, capfd):
    with pytest.raises(RankError):
        ranks.run(1, raise_on, 0)
    assert "word from" in ranks.output()
    assert "word from" not in "".join(capfd.readouterr())


@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed on the CPU is built for Linux")
def test_deepspeed_engines_follow_each_other_with_and_without_an_open_group(ranks):
    results = [ranks.run(2, train_with_deepspeed, stage) for stage in (1, 2, 3)]
    results.append(ranks.options(open_group=False).run(2, train_with_deepspeed, 2))
    for losses in results:
        assert losses[0] == losses[1] == pytest.approx(results[0][0], rel=1e-5)
    assert results[0][0][2] < results[0][0][0]
