"""Packed training compared to TRL's SFTTrainer: same tokens, same weights, 2 CPU ranks, a Llama with 2.4M parameters.

    pip install --no-deps 'trl==1.16.*'
    python benchmarks/sft_packing.py [--rounds 5] [--trl PATH]      # results: README.md

600 rows of lognormal length (mean about 290 tokens), capacity 2,048, one epoch. TRL runs with packing (bfd) and without;
without packing it pads 8 rows per rank. Each side processes every token once; seconds are those of the training alone.
On a CPU, TRL warns that its packed examples attend to each other. Ours do not, which is also a reason why ours is faster: one
attention call per segment costs the sum of the squares, one call for a full pack the square of the sum.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CAPACITY, ROWS, VOCABULARY = 2048, 600, 2000
SHAPE = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CAPACITY, "vocab_size": VOCABULARY + 3,
    "tie_word_embeddings": True,
}  # fmt: skip
RECIPE = """
name: sft
task: causal_lm
model: {{source: llama, init: config, tokenizer: {folder}/tokenizer, config: {shape}}}
data: {{train: {folder}/rows.jsonl, packing: {packing}, capacity: {capacity}, balance_window: 1}}
options: {{format: text, train_on: all, max_length: {capacity}}}
training: {{epochs: 1, global_batch: 32, learning_rate: 1.0e-3}}
parallel: {{processes: 2, deepspeed: none}}
evaluation: {{samples: 0}}
checkpoint: {{keep: 1}}
tracking: {{wandb: "off"}}
"""


def write_data(folder: Path) -> None:
    """Rows of words w0 w1 ..., one token each, and the tokenizer for them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(5.15, 1.0, ROWS), 8, CAPACITY - 2).astype(int)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for length in lengths:
            words = " ".join(f"w{word}" for word in draw.integers(0, VOCABULARY, size=length))
            file.write(json.dumps({"text": words}) + "\n")
    vocabulary = {f"w{word}": word for word in range(VOCABULARY)}
    vocabulary |= {"<pad>": VOCABULARY, "<eos>": VOCABULARY + 1, "<unk>": VOCABULARY + 2}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=CAPACITY
    )
    tokenizer.save_pretrained(folder / "tokenizer")


def train_trl(folder: Path, packing: bool) -> None:
    """One rank of TRL's SFTTrainer on the same token ids."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    texts = [json.loads(line)["text"] for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    torch.manual_seed(17)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, pad_token_id=VOCABULARY))
    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        num_train_epochs=1,
        per_device_train_batch_size=2 if packing else 8,
        packing=packing,
        packing_strategy="bfd",
        max_length=CAPACITY,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict({"input_ids": ids}), processing_class=tokenizer
    )
    trained = trainer.train()
    if trainer.is_world_process_zero():
        (folder / "told.json").write_text(json.dumps(trained.metrics["train_runtime"]), encoding="utf-8")


def seconds_of_trl(folder: Path, packing: bool, environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    command += ["--folder", str(folder), "--side", "packed" if packing else "unpacked"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return float(json.loads((folder / "told.json").read_text(encoding="utf-8")))


def seconds_of_ours(folder: Path, packing: str, number: int, environment: dict[str, str]) -> float:
    recipe, run = folder / f"{packing}.yaml", folder / f"run-{packing}-{number}"
    shape = json.dumps({key: value for key, value in SHAPE.items() if key != "vocab_size"})
    recipe.write_text(RECIPE.format(folder=folder, shape=shape, packing=packing, capacity=CAPACITY), encoding="utf-8")
    command = [sys.executable, "-m", "finetune", "train", str(recipe), "--run-dir", str(run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return float(json.loads((run / "run.json").read_text(encoding="utf-8"))["summary"]["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trl", default="", help="folder with trl, if it is not installed")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--side", default="")
    options = parser.parse_args()
    if options.side:
        train_trl(options.folder, options.side == "packed")
        return
    path = os.pathsep.join(filter(None, (str(ROOT), options.trl, os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
    if subprocess.run(
        [sys.executable, "-c", "import trl"], env=environment, capture_output=True, check=False
    ).returncode:
        print("skipped: TRL is not installed (pip install --no-deps 'trl==1.16.*')")
        return
    seconds: dict[str, list[float]] = {"ours packed": [], "ours padding_free": [], "TRL bfd": [], "TRL unpacked": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        for number in range(options.rounds):
            seconds["ours packed"].append(seconds_of_ours(folder, "packed", number, environment))
            seconds["TRL bfd"].append(seconds_of_trl(folder, True, environment))
            seconds["ours padding_free"].append(seconds_of_ours(folder, "padding_free", number, environment))
            seconds["TRL unpacked"].append(seconds_of_trl(folder, False, environment))
            print({side: round(told[-1], 1) for side, told in seconds.items()}, flush=True)
    for side, told in seconds.items():
        print(f"{side:18} {statistics.median(told):7.1f} s (median of {len(told)})")
    for ours in ("ours packed", "ours padding_free"):
        for theirs in ("TRL bfd", "TRL unpacked"):
            ratio = statistics.median(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))
            print(f"{ours} / {theirs}: {ratio:.3f}")


if __name__ == "__main__":
    main()
