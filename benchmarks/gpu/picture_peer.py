"""A plain training loop of the same image model on tensors that are on the device already: images per second.

python -m benchmarks.gpu.picture_peer CONFIG_JSON MODEL_TYPE BATCH STEPS
"""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForImageClassification

from benchmarks.gpu.jobs import tell, wait_for_turn

WARM_STEPS = 5


def main() -> None:
    """See the head of the file."""
    values, kind, batch, steps = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    wait_for_turn()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, num_labels=10, **values)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    size = values.get("image_size", 224)
    pixels = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    model.train()
    began = 0.0
    for step in range(steps):
        if step == WARM_STEPS:
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / (steps - WARM_STEPS)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    tell(step_seconds=seconds, tokens_per_second=batch / seconds, peak_bytes=peak)


if __name__ == "__main__":
    main()
