"""Images on CUDA: bytes become the values of the processor, with the channels innermost; and the norm of many gradients."""

import pytest
import torch

from finetune.distributed.gradient_norm import total_norm
from finetune.tasks.vision.levels import pixel_values


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_become_the_values_of_the_table(channels, dtype):
    levels = torch.randint(0, 256, (4, 20, 24, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    table = torch.randn(channels, 256)
    inputs = {"pixel_values": levels, "pixel_table": table}
    wanted = pixel_values(inputs, dtype)["pixel_values"]
    pinned = {name: tensor.pin_memory().to("cuda", non_blocking=True) for name, tensor in inputs.items()}
    found = pixel_values(pinned, dtype)["pixel_values"]
    assert torch.equal(found.cpu(), wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_many_gradients_is_that_of_float64(dtype):
    torch.manual_seed(0)
    gradients = [torch.randn(size, 7).to(dtype) * 10.0 ** (size % 5) for size in (1, 3000, 200, 2, 90_000) * 40]
    exact = torch.cat([gradient.double().reshape(-1) for gradient in gradients]).norm()
    found = total_norm(gradient.cuda() for gradient in gradients)
    assert found.dtype == torch.float64 and found.is_cuda
    torch.testing.assert_close(found.cpu(), exact, rtol=1e-12, atol=0.0)
