"""TRL's SFTTrainer with Liger on the same model and the same token ids: seconds per step and peak memory.

    python -m benchmarks.gpu.trl_peer '{"model": ..., "rows": ..., "dtype": "float32", "micro_batch": 4, ...}'

Weights are drawn on the device. Tokens are all that are no padding, as TRL itself counts them; the peak is that of the process.
Where flash-attention is not installed, packed rows are kept apart by a mask over all pairs of tokens, which is slower. It is
said beside the figure.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.gpu.jobs import tell, wait_for_turn
from benchmarks.gpu.ours import WARM_STEPS
from benchmarks.gpu.profiling import STEPS, StepProfiles


class Clock(TrainerCallback):
    """Notes the end of each step, and ends the process after `steps` of them and those that are profiled."""

    trainer: Any = None
    first_step_at = 0.0

    def __init__(self, steps: int, note: str, profile: Path | None) -> None:
        self.steps, self.note = steps, note
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.profiles = StepProfiles(profile) if profile is not None else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        if self.profiles is not None and len(self.ends) == self.steps:
            self.profiles.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if len(self.ends) < self.steps:
            self.ends.append(time.perf_counter())
            self.first_step_at = self.first_step_at or time.time()
            self.tokens.append(int(self.trainer._total_train_tokens))
            if len(self.ends) == self.steps:
                self.tell()
        elif self.profiles is not None:
            self.profiles.end()
        if len(self.ends) == self.steps and (self.profiles is None or self.profiles.done):
            os._exit(0)

    def tell(self) -> None:
        """Print the result."""
        seconds = self.ends[-1] - self.ends[WARM_STEPS - 1]
        tokens = self.tokens[-1] - self.tokens[WARM_STEPS - 1]
        tell(
            step_seconds=seconds / (self.steps - WARM_STEPS),
            tokens_per_second=tokens / seconds,
            peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            first_step_at=self.first_step_at,
            seconds_of_steps=[round(end - start, 5) for start, end in pairwise(self.ends)],
            note=self.note,
        )


def main() -> None:
    """See the head of the file."""
    asked = json.loads(sys.argv[1])
    gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    texts = [json.loads(line)["text"] for line in Path(asked["rows"]).read_text("utf-8").splitlines()]
    ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(texts)["input_ids"]]
    flash = importlib.util.find_spec("flash_attn") is not None
    liger = importlib.util.find_spec("liger_kernel") is not None
    wait_for_turn()
    torch.manual_seed(0)
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(asked["model"]),
            dtype=getattr(torch, asked["dtype"]),
            attn_implementation="flash_attention_2" if flash else "sdpa",
        )
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    micro, accumulation, length = asked["micro_batch"], asked["accumulation"], asked["length"]
    settings = SFTConfig(
        output_dir=asked["folder"],
        max_steps=asked["steps"] + STEPS + 1,
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
        notes.append("no flash-attention: SDPA with a mask")
    clock = Clock(asked["steps"], ", ".join(notes), Path(asked["profile"]) if asked["profile"] else None)
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        processing_class=tokenizer,
        peft_config=adapter if asked["adapter"] else None,
        callbacks=[clock],
    )
    clock.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
