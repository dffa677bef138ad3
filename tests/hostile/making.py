"""Makes what the attacks start from: a small trained run, and a small model with a chat template."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

from tests.e2e import tiny
from tests.faults import run_finetune

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"


def make_run(folder: Path) -> None:
    """`run` in a folder that has the data: one process, one epoch."""
    training = {"global_batch": 8, "epochs": 1, "learning_rate": 5e-3}
    tiny.write_recipe(folder, training=training, parallel={"processes": 1, "deepspeed": "none"})
    finished = run_finetune(["train", "tiny.yaml", "--run-dir", "run"], 240, folder=folder)
    assert finished.code == 0, finished.output


def make_llama(folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    from finetune.models.source import resolve_model

    set_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(tiny.PACKAGE))
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"eos_token": "</s>", "bos_token": "<s>"})
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_resnet(folder: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification, set_seed

    set_seed(3)
    config = ResNetConfig(
        depths=[1, 1], hidden_sizes=[8, 8], embedding_size=8, layer_type="basic", id2label={0: "cat", 1: "dog"}
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "do_resize": True}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True, "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def make_predictions(folder: Path) -> None:
    """`predictions`: of the run's test data, ended, and begun but for the output, in every format. For a process of its own."""
    from finetune.inference.prediction.collector import Collector

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    (folder / "predictions").mkdir()
    os.chdir(folder)
    collect = Collector.collect
    for name in ("ended", "begun"):
        Collector.collect = collect if name == "ended" else _halt  # type: ignore[method-assign]
        for suffix in (".jsonl", ".csv", ".parquet"):
            process = multiprocessing.get_context("fork").Process(
                target=_predict, args=(f"predictions/{name}{suffix}",)
            )
            process.start()
            process.join()
        Path("predictions/begun.parquet").touch()


def _predict(output: str) -> None:
    from finetune import cli

    cli.main(["predict", "run", "--data", "test.csv", "--output", output])


def _halt(self: object, window: object) -> None:
    from finetune.errors import Halted

    raise Halted("as if it were killed here")
