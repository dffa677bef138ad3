"""A small real training for the distributed tests: a tiny Llama on random ragged sequences, through the real engines; and
the same training as a plain float64 loop, which the engines are compared with.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from finetune.data.order.cost import CostModel
from finetune.data.order.loader import iterate_batches
from finetune.data.order.schedule import Schedule
from finetune.distributed.engines.engine import EngineOptions
from finetune.distributed.engines.registry import open_engine
from finetune.distributed.session import Session
from finetune.planning.batch import plan_batch
from finetune.planning.deepspeed import resolve_deepspeed_config
from finetune.recipe.training import TrainingSection
from finetune.tasks.batch import Answer, Batch, Score
from finetune.training.checkpoint import Saver
from finetune.training.learning_rate import learning_rate
from finetune.training.microbatch_planner import MicroBatchPlanner, flat
from finetune.training.parameter_groups import make_optimizer, parameter_groups
from finetune.training.rank_speed import RankSpeedEstimator
from finetune.training.step import seed_step, train_step
from finetune.training.steps import ScheduledSteps

ROOT = Path(__file__).resolve().parents[2]
TRAINING = TrainingSection(
    global_batch=8,
    learning_rate=1e-2,
    weight_decay=0.01,
    warmup=2,
    steps=12,
    max_grad_norm=0.5,
    epsilon=1e-6,  # at 1e-8 Adam turns a gradient that is rounding into a step of full length
)
TOTAL_STEPS = 12


class ToyExamples:
    """Sequences of 3 to 24 tokens, a pure function of the seed."""

    def __init__(self, count=41, seed=3):
        draw = np.random.default_rng(seed)
        self.rows = [draw.integers(1, 64, size=draw.integers(3, 25)) for _ in range(count)]
        self.ids = list(range(count))
        self.costs = np.array([len(row) for row in self.rows])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"id": index, "tokens": self.rows[index]}


class ToyTask:
    """Next-token prediction; the first third of each sequence is not supervised, so that weights differ. Needs no
    artifacts.
    """

    def collate(self, artifacts, examples):
        width = max(len(example["tokens"]) for example in examples)
        tokens = torch.zeros(len(examples), width, dtype=torch.long)
        labels = torch.full((len(examples), width), -100)
        for row, example in enumerate(examples):
            size = len(example["tokens"])
            tokens[row, :size] = torch.as_tensor(example["tokens"])
            labels[row, size // 3 : size] = tokens[row, size // 3 : size]
        mask = (tokens > 0).long()
        ids = tuple(example["id"] for example in examples)
        return Batch(ids, {"input_ids": tokens, "attention_mask": mask}, {"labels": labels})

    def weight(self, batch):
        return int((batch.targets["labels"][:, 1:] != -100).sum())

    def forward(self, model, batch):
        return model(**batch.inputs)

    def loss_sum(self, artifacts, outputs, batch):
        logits, labels = outputs.logits[:, :-1].float(), batch.targets["labels"][:, 1:]
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")

    def decode(self, artifacts, outputs, batch):
        return [Answer(i) for i in batch.ids]

    def score(self, artifacts, outputs, batch):
        logits, labels = outputs.logits[:, :-1].float(), batch.targets["labels"][:, 1:]
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1)
        weights = (labels != -100).sum(1)
        return [Score(i, float(loss), int(weight)) for i, loss, weight in zip(batch.ids, losses, weights, strict=True)]


def tiny_llama(seed=0, **overrides):
    """106k parameters, tied embeddings, no dropout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))


def open_toy(
    config,
    *,
    precision="fp32",
    micro_batch="auto",
    training=TRAINING,
    build=tiny_llama,
    tensor=1,
    zero=None,
    engine="",
    trains=True,
    masters=False,
):
    """Session and engine, as a worker opens them. config: a name in ds_configs/, or none. zero: replaces settings of its
    `zero_optimization`. engine: its name, "": as config says. trains: False opens it for inference. masters: as in
    EngineOptions.
    """
    batch = plan_batch(training.global_batch, int(os.environ["WORLD_SIZE"]) // tensor, micro_batch, 4)
    resolved = None
    if config != "none":
        written = json.loads((ROOT / "ds_configs" / f"{config}.json").read_text())
        written["zero_optimization"] |= zero or {}
        clip = training.max_grad_norm
        resolved = resolve_deepspeed_config(
            written, batch=batch, precision=precision, max_grad_norm=clip, hidden_size=4, tensor=tensor
        )
    session = Session.open(resolved, precision=precision, cpu=True, replica_size=tensor)
    name = engine or ("ddp" if config == "none" else "deepspeed")
    options = EngineOptions(training.max_grad_norm, master_weights=masters)
    make = (lambda module: make_optimizer(module, training, training.optimizer)) if trains else None
    return open_engine(name, session, build(), make, options), batch


def toy_schedule():
    """Which examples each step trains on."""
    return Schedule(ToyExamples().costs, seed=5, global_batch=TRAINING.global_batch)


def train_toy(engine, batch, steps, *, task=None, seen=None):
    """Run `steps` (a range of global steps); losses and gradient norms. seen: collects the ids this rank computed."""
    task, examples, session = task or ToyTask(), ToyExamples(), engine.session
    planner = MicroBatchPlanner(examples.costs, CostModel(), ranks=session.replicas, micro_batch=batch.micro_batch)
    rank_speed = RankSpeedEstimator("equal", session, lookahead=0)
    source = ScheduledSteps(toy_schedule(), planner, rank_speed, replica=session.replica, total_steps=steps.stop)
    losses, norms = [], []
    for step, batches in iterate_batches(examples, lambda some: task.collate(None, some), source.steps(steps.start)):
        engine.set_learning_rate(learning_rate(step.index, TOTAL_STEPS, TRAINING))
        seed_step(1, step.index, session.replica)
        result = train_step(task, None, engine, batches, dummies=step.dummies, stop=False)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if seen is not None:
            seen.append([i for one, dummy in zip(batches, step.dummies, strict=True) if not dummy for i in one.ids])
    return losses, norms


def train_reference(model, steps):
    """Plain PyTorch in float64: one process, one batch per step, no engine. Losses and norms; `model` is trained."""
    model = model.double()
    groups = parameter_groups(model, TRAINING.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=TRAINING.betas, eps=TRAINING.epsilon)
    examples, task, schedule = ToyExamples(), ToyTask(), toy_schedule()
    losses, norms = [], []
    for step in range(steps):
        batch = task.collate(None, [examples[i] for i in flat(schedule.step(step))])
        logits = model(**batch.inputs).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), batch.targets["labels"][:, 1:].flatten())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, TOTAL_STEPS, TRAINING)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), TRAINING.max_grad_norm)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms


def save_checkpoint(engine, folder, *, step, training, loop):
    """Save, and wait for it: the published checkpoint. All ranks call it."""
    saver = Saver(engine, folder, training=training)
    try:
        saver.begin(step, loop)
        saver.finish()
    finally:
        saver.close()
    return saver.latest
