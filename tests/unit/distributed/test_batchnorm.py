"""Proves that BatchNorm over ranks equals torch's own BatchNorm on the whole batch in one process, in float64 to 1e-10.

Reference: nn.BatchNorm1d, 2d, 3d on the ranks' batches laid end to end.
"""

import hashlib
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.distributed.batchnorm import SyncedBatchNorm, convert_batchnorm, dummy_batch
from finetune.errors import UserError

EXACT = {"rtol": 0, "atol": 1e-10}
CHANNELS, STEPS = 3, 3
DUMMY = -2  # examples of a rank that runs a copy of two examples without counting them
SHAPES = {"1d": (), "1d-length": (5,), "2d": (4, 3), "3d": (2, 3, 2)}
LAYERS = {"1d": nn.BatchNorm1d, "1d-length": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}


class CountCollectives(TorchDispatchMode):
    """Counts whatever goes to the process group, by whichever function."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.counts[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def make_layer(kind, options):
    torch.manual_seed(5)
    layer = LAYERS[kind](CHANNELS, dtype=torch.float64, **options)
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


def make_data(kind, sizes, step):
    """The ranks' inputs and the gradients that come back to them, far from zero mean."""
    generator = torch.Generator().manual_seed(100 + step)

    def draw(size):
        return torch.randn(abs(size), CHANNELS, *SHAPES[kind], generator=generator, dtype=torch.float64)

    # A dummy's loss weighs zero, so its gradient is zero.
    return [draw(size) * 3 + 7 for size in sizes], [draw(size) * (size != DUMMY) for size in sizes]


def record(layer, x, dy, dummy=False):
    x = x.clone().requires_grad_()
    with dummy_batch(layer):  # leaving it restores what was there
        pass
    layer.zero_grad()
    if dummy:
        with dummy_batch(layer):
            y = layer(x)
    else:
        y = layer(x)
    y.backward(dy)
    return {"y": y.detach(), "dx": x.grad, **{name: p.grad.clone() for name, p in layer.named_parameters()}}


def on_rank(kind, options, sizes):
    layer = convert_batchnorm(make_layer(kind, options))
    assert isinstance(layer, SyncedBatchNorm) and isinstance(layer, LAYERS[kind])
    rank, results = dist.get_rank(), []
    for step in range(STEPS):
        inputs, gradients = make_data(kind, sizes, step)
        with CountCollectives() as counter:
            results.append(record(layer, inputs[rank], gradients[rank], dummy=sizes[rank] == DUMMY))
        assert sum(counter.counts.values()) == 2, counter.counts  # one forward, one backward
    layer.eval()
    with CountCollectives() as counter:
        results.append(record(layer, *(tensors[rank] for tensors in make_data(kind, sizes, 9))))
    assert not counter.counts
    return results, {name: value.clone() for name, value in layer.named_buffers()}


def check_against_reference(ranks, kind, options, sizes):
    answers = ranks.run(len(sizes), on_rank, kind, options, sizes)
    layer = make_layer(kind, options)
    counted = [rank for rank, size in enumerate(sizes) if size >= 0]
    for step in range(STEPS):
        inputs, gradients = make_data(kind, sizes, step)
        expected = record(layer, torch.cat([inputs[r] for r in counted]), torch.cat([gradients[r] for r in counted]))
        got = [answer[0][step] for answer in answers]
        for name in ("y", "dx"):
            torch.testing.assert_close(torch.cat([got[r][name] for r in counted]), expected[name], **EXACT)
        for name in dict(layer.named_parameters()):
            torch.testing.assert_close(sum(result[name] for result in got), expected[name], **EXACT)
    for name, value in layer.named_buffers():
        for _, buffers in answers:
            torch.testing.assert_close(buffers[name], value, **EXACT)
            assert torch.equal(buffers[name], answers[0][1][name])  # to the last bit between ranks
    layer.eval()
    if layer.track_running_stats:
        for rank, (inputs, gradients) in enumerate(zip(*make_data(kind, sizes, 9), strict=True)):
            expected = record(layer, inputs, gradients)
            for name, value in expected.items():
                torch.testing.assert_close(answers[rank][0][STEPS][name], value, **EXACT)


@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("sizes", [(4, 4), (5, 2), (6, 0), (3, DUMMY), (3, 1, 4), (3, DUMMY, 2), (0, 4, DUMMY)])
def test_equals_batchnorm_of_the_whole_batch(ranks, kind, sizes):
    check_against_reference(ranks, kind, {}, sizes)


@pytest.mark.parametrize(
    "options", [{"momentum": None}, {"momentum": 0.3, "eps": 1e-2}, {"affine": False}, {"track_running_stats": False}]
)
def test_every_option_of_batchnorm(ranks, options):
    check_against_reference(ranks, "2d", options, (3, 0, 2) if "track_running_stats" not in options else (3, 2))


def run_only_dummies(momentum):
    layer = convert_batchnorm(nn.BatchNorm1d(CHANNELS, momentum=momentum))
    layer(torch.randn(4, CHANNELS) + 3)
    before = {name: value.clone() for name, value in layer.named_buffers()}
    x = torch.randn(2, CHANNELS, requires_grad=True)
    with dummy_batch(layer):
        y = layer(x)
    (y * 0).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in layer.named_buffers())
    assert x.grad.count_nonzero() == 0
    expected = layer.eval()(x)
    torch.testing.assert_close(y, expected)  # normalised by the running statistics, for want of others
    layer.train()
    layer(torch.randn(4, CHANNELS))
    assert layer.num_batches_tracked == 2 and not layer.dummy


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_rest_where_all_ranks_are_dummies(ranks, n, momentum):
    ranks.run(n, run_only_dummies, momentum)


def run_far_from_zero():
    x = torch.randn(64, CHANNELS, generator=torch.Generator().manual_seed(dist.get_rank())) + 4000
    layer = convert_batchnorm(nn.BatchNorm1d(CHANNELS, momentum=1.0))
    layer(x)
    return x, layer.running_mean, layer.running_var


def test_float32_keeps_the_variance_far_from_zero(ranks):
    answers = ranks.run(2, run_far_from_zero)
    x = torch.cat([x for x, _, _ in answers])
    naive = x.square().mean(0) - x.mean(0).square()
    assert (naive - x.double().var(0)).abs().max() > 0.1  # what a sum of squares would have made of it
    torch.testing.assert_close(answers[1][2].double(), x.double().var(0), rtol=1e-3, atol=0)


def run_half(dtype):
    layer = convert_batchnorm(nn.BatchNorm2d(CHANNELS, momentum=0.01)).to(dtype)
    assert layer.weight.dtype == dtype and layer.running_mean.dtype == torch.float32
    x = torch.randn(8, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(dist.get_rank())).to(dtype) + 1
    x.requires_grad_()
    y = layer(x)
    y.square().mul(0.5).sum().backward()
    assert y.dtype == x.grad.dtype == layer.weight.grad.dtype == dtype
    return x.detach(), y.detach(), x.grad, layer.running_mean, layer.weight.grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_have_float32_statistics(ranks, dtype):
    answers = ranks.run(2, run_half, dtype)
    x = torch.cat([answer[0] for answer in answers]).float().requires_grad_()
    plain = nn.BatchNorm2d(CHANNELS, momentum=0.01)
    y = plain(x)
    torch.testing.assert_close(answers[0][3], plain.running_mean, rtol=1e-5, atol=1e-7)  # bf16 would be 1e-2 off
    torch.testing.assert_close(torch.cat([answer[1] for answer in answers]).float(), y, rtol=1e-2, atol=1e-2)
    dy = torch.cat([answer[1] for answer in answers]).float()
    y.backward(dy)
    torch.testing.assert_close(torch.cat([answer[2] for answer in answers]).float(), x.grad, rtol=0, atol=2e-2)
    torch.testing.assert_close(sum(answer[4] for answer in answers).float(), plain.weight.grad, rtol=2e-2, atol=0)


def make_cnn(dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(8, 4)),
    ).to(dtype)


def make_images(step, dtype=torch.float64):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 8, 8, generator=generator).to(dtype), torch.randint(4, (8,), generator=generator)


def train_ddp(sizes):
    start = sum(sizes[: dist.get_rank()])
    mine = slice(start, start + sizes[dist.get_rank()])
    model = nn.parallel.DistributedDataParallel(convert_batchnorm(make_cnn()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        images, labels = make_images(step)
        # DDP averages over ranks; times their number, divided by the global count: the mean over all examples.
        loss = nn.functional.cross_entropy(model(images[mine]), labels[mine], reduction="sum") * len(sizes) / 8
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = model.module.state_dict()
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for _, value in model.module.named_buffers()))
    return state, digest.hexdigest()


def train_alone(dtype=torch.float64, learning_rate=0.1):
    model, losses = make_cnn(dtype), []
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for step in range(4):
        images, labels = make_images(step, dtype)
        loss = nn.functional.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict(), losses


@pytest.mark.parametrize("sizes", [(4, 4), (6, 2), (3, 3, 2)])
def test_a_cnn_on_ranks_equals_one_process(ranks, sizes):
    answers = ranks.run(len(sizes), train_ddp, sizes)
    expected, _ = train_alone()
    for state, _ in answers:
        assert list(state) == list(expected)
        for name, value in state.items():
            torch.testing.assert_close(value, expected[name], **EXACT)
    assert len({digest for _, digest in answers}) == 1


def train_deepspeed(stage, bf16):
    from accelerate import Accelerator, DeepSpeedPlugin, PartialState

    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    PartialState(cpu=True)
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config), mixed_precision="bf16" if bf16 else "no"
    )
    model = convert_batchnorm(make_cnn(torch.float32))
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert type(model).__name__ == "DeepSpeedEngine" and accelerator.num_processes == 2
    losses, rank = [], accelerator.process_index
    for step in range(4):
        images, labels = make_images(step, torch.bfloat16 if bf16 else torch.float32)
        logits = model(images[4 * rank : 4 * rank + 4]).float()
        loss = nn.functional.cross_entropy(logits, labels[4 * rank : 4 * rank + 4])
        accelerator.backward(loss)
        optimizer.step()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
    buffers = {name: value.clone() for name, value in model.module.named_buffers()}
    return losses, buffers


@pytest.mark.parametrize(("stage", "bf16"), [(1, False), (2, False), (3, False), (2, True), (3, True)])
def test_deepspeed_engines_keep_it_exact(ranks, stage, bf16):
    answers = ranks.run(2, train_deepspeed, stage, bf16)
    expected, losses = train_alone(torch.float32)
    tolerance = 3e-2 if bf16 else 1e-5
    assert answers[0][0] == answers[1][0] == pytest.approx(losses, rel=tolerance)
    for name, value in answers[0][1].items():
        assert value.dtype == expected[name].dtype  # the statistics stay float32 in a bf16 engine
        assert torch.equal(value, answers[1][1][name])
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)


def test_conversion_keeps_modules_names_and_parameters():
    model = make_cnn().half()
    modules, state, parameters = list(model.modules()), list(model.state_dict()), list(model.parameters())
    assert convert_batchnorm(convert_batchnorm(model)) is model
    assert all(one is other for one, other in zip(modules, model.modules(), strict=True))
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == state
    assert [type(module).__name__ for module in model.modules()].count("SyncedBatchNorm2d") == 2
    assert model[1].running_var.dtype == torch.float32
    model.load_state_dict(make_cnn().state_dict())


def test_a_batchnorm_of_another_class_is_refused_by_name():
    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(UserError, match=r"1\.0: Own"):
        convert_batchnorm(nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(Own(2))))


def test_the_wrong_number_of_dimensions_is_refused():
    layer = convert_batchnorm(nn.BatchNorm2d(CHANNELS))
    with dummy_batch(layer), pytest.raises(ValueError, match="expected 4D"):
        layer(torch.randn(2, CHANNELS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_evaluate_with_statistics_in_float32(dtype):
    """As under ZeRO in bf16 on several ranks: weights are half precision, statistics are not."""
    plain = nn.Sequential(nn.BatchNorm2d(4)).eval()
    plain[0].running_mean.copy_(torch.linspace(-1, 1, 4))
    plain[0].weight.data.copy_(torch.linspace(0.5, 2, 4))
    x = torch.randn(2, 4, 3, 3).to(dtype)
    expected = plain(x.float())
    synced = convert_batchnorm(plain)
    assert torch.equal(synced(x.float()), expected)
    synced.to(dtype)
    assert synced[0].weight.dtype == dtype and synced[0].running_mean.dtype == torch.float32
    assert synced(x).dtype == dtype
    torch.testing.assert_close(synced(x).float(), expected, rtol=2e-2, atol=2e-2)
