"""TRL's SFTTrainer with Liger on the same model and the same token ids: seconds per step and peak memory.

    python -m benchmarks.gpu.trl_peer '{"model": ..., "rows": ..., "dtype": "float32", "micro_batch": 4, ...}'

Packed rows attend to each other where flash-attention is not installed: TRL's figure is then too good. It is said beside it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.gpu.jobs import tell

WARM_STEPS = 4


class Clock(TrainerCallback):
    """Notes the end of each step, and ends the process after `steps` of them."""

    def __init__(self, steps: int, note: str) -> None:
        self.steps, self.note, self.tokens, self.ends = steps, note, 0.0, []  # type: ignore[var-annotated]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if len(self.ends) < self.steps:
            return
        seconds = (self.ends[-1] - self.ends[WARM_STEPS - 1]) / (len(self.ends) - WARM_STEPS)
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        tell(step_seconds=seconds, tokens_per_second=self.tokens / seconds, peak_bytes=peak, note=self.note)
        os._exit(0)


def main() -> None:
    """See the head of the file."""
    asked = json.loads(sys.argv[1])
    gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    texts = [json.loads(line)["text"] for line in Path(asked["rows"]).read_text("utf-8").splitlines()]
    ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(texts)["input_ids"]]
    flash = importlib.util.find_spec("flash_attn") is not None
    liger = importlib.util.find_spec("liger_kernel") is not None
    model = AutoModelForCausalLM.from_pretrained(
        asked["model"],
        dtype=getattr(torch, asked["dtype"]),
        attn_implementation="flash_attention_2" if flash else "sdpa",
    )
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    micro, accumulation, length = asked["micro_batch"], asked["accumulation"], asked["length"]
    settings = SFTConfig(
        output_dir=asked["folder"],
        max_steps=asked["steps"] + 1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        packing=asked["packing"],
        max_length=length,
        learning_rate=1e-5,
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        bf16=gpu,
        use_cpu=not gpu,
        gradient_checkpointing=asked["checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=liger and gpu,
        optim="adamw_torch_fused",
        disable_tqdm=True,
        dataloader_num_workers=2 if gpu else 0,
    )
    notes = [f"TRL {importlib.metadata.version('trl')}", "Liger" if liger and gpu else "no Liger"]
    if asked["packing"] and not flash:
        notes.append("packed rows attend to each other")
    clock = Clock(asked["steps"], ", ".join(notes))
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        processing_class=tokenizer,
        peft_config=adapter if asked["adapter"] else None,
        callbacks=[clock],
    )
    rows = trainer.train_dataset["input_ids"]  # as they are packed or cut
    clock.tokens = sum(map(len, rows)) / len(rows) * micro * accumulation
    trainer.train()


if __name__ == "__main__":
    main()
