"""The pretended device refuses what CUDA refuses, and takes what it takes; it counts memory and waits."""

import copy
import io
import os
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.pretended_cuda.marks import GIB, MEMORY
from tests.pretended_cuda.waits import noting_waits

CUDA = torch.device("cuda", 0)


def on_cuda(*shape, **options):
    return torch.randn(*shape, device="cuda", **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2, device="cuda"), lambda: torch.tensor([1.0], device="cuda"),
        lambda: torch.ones(2).cuda(), lambda: torch.ones(2).to("cuda"), lambda: torch.ones(2).to(on_cuda(1)),
        lambda: on_cuda(4)[1:3], lambda: on_cuda(4).detach(), lambda: on_cuda(4).data, lambda: on_cuda(4) * 2,
        lambda: on_cuda(2).new_zeros(3), lambda: torch.zeros_like(on_cuda(2)), lambda: on_cuda(2).new_tensor([1]),
        lambda: on_cuda(2, 2) @ on_cuda(2, 2), lambda: functional.one_hot(torch.tensor([1], device="cuda")),
        lambda: copy.deepcopy(on_cuda(2)), lambda: on_cuda(2) + torch.tensor(1.0), lambda: on_cuda(4)[torch.tensor([1])],
        lambda: torch.tensor(1.0) + torch.tensor(1.0, device="cuda"), lambda: nn.Linear(2, 2).cuda().weight,
        lambda: torch.as_tensor([1], device="cuda"), lambda: on_cuda(3).half(),
    ],
)  # fmt: skip
def test_it_lies_on_the_device(make):
    assert make().device == CUDA and make().is_cuda


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2), lambda: on_cuda(2).cpu(), lambda: on_cuda(2).to("cpu"), lambda: on_cuda(2).to(torch.ones(1)),
        lambda: torch.zeros_like(on_cuda(2), device="cpu"), lambda: torch.tensor(on_cuda(2).tolist()),
        lambda: copy.deepcopy(torch.ones(2)), lambda: on_cuda(2).new_zeros(2, device="cpu"),
    ],
)  # fmt: skip
def test_it_lies_on_the_host(make):
    assert make().device == torch.device("cpu") and not make().is_cuda


def test_gradients_lie_beside_weights_and_cross_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).cuda()
    host = torch.ones(5, 3, requires_grad=True)
    functional.cross_entropy(model(host.cuda()), torch.tensor([0, 1, 0, 1, 1], device="cuda")).backward()
    assert all(weight.grad.device == CUDA for weight in model.parameters())
    assert host.grad.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda: on_cuda(2, 2) @ torch.ones(2, 2), "same device"),
        (lambda: on_cuda(2) + torch.ones(2), "same device"),
        (lambda: torch.ones(2).add_(on_cuda(2)), "same device"),
        (lambda: torch.ones(2) * on_cuda(()), "same device"),
        (lambda: functional.embedding(torch.tensor([1]), on_cuda(3, 2)), "same device"),
        (lambda: torch.ones(3)[torch.tensor([1], device="cuda")], "same device"),
        (lambda: torch.cat([on_cuda(2), torch.ones(2)]), "same device"),
        (lambda: on_cuda(2).numpy(), "convert cuda:0"),
        (lambda: torch.zeros(2, device="cuda:1"), "invalid device ordinal"),
        (lambda: on_cuda(2).pin_memory(), "cannot pin"),
        (lambda: torch.randn(2, device="cuda", generator=torch.Generator()), "'cuda' device type for generator"),
        (lambda: torch.randn(2, generator=torch.Generator("cuda")), "'cpu' device type for generator"),
        (lambda: torch.ones(2, 2, dtype=torch.int64).cuda() @ torch.ones(2, 2, dtype=torch.int64).cuda(), "not implemented"),
        (lambda: functional.layer_norm(on_cuda(2, 4).bfloat16(), (4,), on_cuda(4)), "expected scalar type"),
        (lambda: torch.mm(on_cuda(2, 2), on_cuda(2, 2), out_dtype=torch.float64), "out_dtype"),
    ],
)  # fmt: skip
def test_it_refuses_what_cuda_refuses(do, said):
    with pytest.raises((RuntimeError, TypeError), match=said):
        do()


@pytest.mark.parametrize(
    ("dtype", "borders", "said"),
    [(torch.float32, torch.int32, "fp16 and bf16"), (torch.bfloat16, torch.int64, "int32")],
)
def test_flash_attention_of_varying_lengths_wants_half_precision(dtype, borders, said):
    from torch.nn.attention.varlen import varlen_attn

    q = on_cuda(5, 2, 8, dtype=dtype)
    with pytest.raises(RuntimeError, match=said):
        varlen_attn(q, q, q, torch.tensor([0, 5], device="cuda", dtype=borders), None or torch.tensor(
            [0, 5], device="cuda", dtype=borders), 5, 5)  # fmt: skip


def test_fused_optimizers_want_one_dtype():
    weight = nn.Parameter(on_cuda(3))
    weight.grad = on_cuda(3)
    optimizer = torch.optim.AdamW([weight], fused=True)
    optimizer.step()
    assert optimizer.state[weight]["exp_avg"].device == optimizer.state[weight]["step"].device == CUDA
    optimizer.state[weight]["exp_avg"] = optimizer.state[weight]["exp_avg"].bfloat16()
    with pytest.raises(RuntimeError, match="same dtype"):
        optimizer.step()


def test_autocast_has_the_dtypes_of_cuda():
    layer, x = nn.Linear(4, 4).cuda(), on_cuda(2, 4)
    with torch.autocast("cuda", torch.bfloat16):
        half = layer(x)
        assert half.dtype == (half * 2).dtype == torch.bfloat16
        wide = [half.softmax(-1), functional.layer_norm(half, (4,)), half.sum(), half.exp(), half.pow(2)]
        assert [one.dtype for one in wide] == [torch.float32] * 5
        assert nn.Linear(4, 4)(torch.ones(4)).dtype == torch.float32  # on the host
        with torch.autocast("cuda", enabled=False):
            assert layer(x).dtype == torch.float32
    assert layer(x).dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def test_waits_are_counted_with_their_place():
    x = on_cuda(3)
    pinned = torch.empty(3, pin_memory=True)
    asking = [
        lambda: x.sum().item(), lambda: x.cpu(), lambda: bool(x[0] > 1), lambda: float(x[0]), lambda: x.tolist(),
        lambda: x[x > 0], lambda: x.nonzero(), lambda: torch.ones(3).cuda(), lambda: torch.cuda.synchronize(),
        lambda: torch.tensor([1], device="cuda"), lambda: torch.equal(x, x), lambda: torch.ones(3).copy_(x),
    ]  # fmt: skip
    for number, ask in enumerate(asking):
        with noting_waits() as waits:
            ask()
        assert len(waits) == 1, number
        assert waits[0].place.startswith("tests/pretended_cuda/test_device.py:"), waits
    with noting_waits() as waits:
        pinned.copy_(x, non_blocking=True)
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        x.mul_(2).clamp_(max=1.0).isfinite().all()
    assert not waits


def test_a_copy_that_nobody_waited_for_has_not_arrived():
    x, host, event = on_cuda(3), torch.empty(3, pin_memory=True), torch.cuda.Event()
    host.copy_(x, non_blocking=True)
    event.record()
    sent = x.clone()
    x.zero_()
    assert host.isnan().all()
    event.synchronize()
    assert torch.equal(host, sent.cpu())


def test_memory_is_counted_and_ends():
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    big = torch.zeros(2**20, device="cuda")
    view = big[10:]
    del big
    assert torch.cuda.memory_allocated() - before == 2**22
    del view
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before == 2**22
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        MEMORY.take(81 * GIB)
    free, total = torch.cuda.mem_get_info()
    assert total - free == torch.cuda.memory_allocated()


def test_random_numbers_are_those_of_the_device():
    torch.manual_seed(3)
    host = torch.rand(4)
    torch.manual_seed(3)
    device = torch.rand(4, device="cuda")
    functional.dropout(device)
    assert torch.equal(torch.rand(4), host)  # the device draws nothing of the host's
    state = torch.cuda.get_rng_state()
    drawn = torch.rand(4, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(4, device="cuda"), drawn)
    generator = torch.Generator("cuda").manual_seed(1)
    torch.rand(2, device="cuda", generator=generator)


def test_a_file_knows_where_its_tensors_lay():
    file = io.BytesIO()
    torch.save({"x": torch.ones(2).cuda()}, file)
    for place, expected in ((None, CUDA), ("cpu", torch.device("cpu")), ("cuda", CUDA)):
        file.seek(0)
        assert torch.load(file, map_location=place)["x"].device == expected


def test_threads_pretend_and_forks_are_refused():
    found = []
    thread = threading.Thread(target=lambda: found.append((on_cuda(2) * 2).device))
    thread.start()
    thread.join()
    assert found == [CUDA]
    child = os.fork()
    if child == 0:
        try:
            on_cuda(2)
        except RuntimeError as error:
            os._exit(7 if "forked subprocess" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
