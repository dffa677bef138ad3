"""A small real image training for the tests of pipelines: digits, through the application's own setup and loop."""

import os
from pathlib import Path

import torch

from finetune.app.machine import plan_here
from finetune.app.workers.context import open_session, set_up
from finetune.app.workers.preparing import ready
from finetune.app.workers.train import make_loop
from finetune.events import SilentListener
from finetune.recipe.recipe import recipe_type
from finetune.tasks import CARDS
from finetune.training.checkpoint_reader import load_checkpoint, open_checkpoint
from finetune.training.loop import OutputDirs
from finetune.training.stop import StopRequest

MODELS = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "patch_size": 2},
    "vit": {
        "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "hidden_dropout_prob": 0.0,
    },
}  # fmt: skip
ROWS, VALIDATION_ROWS, GLOBAL_BATCH, MICRO_BATCH = 49, 17, 24, 5  # the last step of an epoch has one image


def recipe(model="resnet", *, pipeline=1, batch_norm="auto", seed=3, model_options=None, **changes):
    """A recipe's values. Random augmentation, mixup and label smoothing are on."""
    training = {"global_batch": GLOBAL_BATCH, "steps": 6, "learning_rate": 3e-3, "warmup": 1, "max_grad_norm": 0.5}
    return {
        "name": "pictures",
        "task": "image_classification",
        "seed": seed,
        "model": {
            "source": model, "init": "config", "config": MODELS[model], "batch_norm": batch_norm,
            **(model_options or {}),
        },
        "data": {
            "train": {"source": "builtin:digits", "limit": ROWS},
            "validation": {"source": "builtin:digits", "split": "validation", "limit": VALIDATION_ROWS},
        },
        "options": {"image_size": 32, "augment": "crop_flip", "mixup": 0.2},
        "training": {**training, "label_smoothing": 0.1, "weight_decay": 0.01, **changes.pop("training", {})},
        "parallel": {"deepspeed": "none", "pipeline": pipeline, "micro_batch": MICRO_BATCH},
        "evaluation": {"samples": 2},
        "tracking": {"wandb": "off", "log_every": 1},
        **changes,
    }  # fmt: skip


def open_pictures(values, folder, messages=None):
    """Context and loop of this rank, as a worker opens them. messages: a list that takes the lines for people."""
    recipe = recipe_type(CARDS["image_classification"])(**values)
    torch.set_num_threads(1)
    plan = plan_here(recipe, int(os.environ["WORLD_SIZE"]))
    context = set_up(open_session(plan), plan, ready(recipe), (messages if messages is not None else []).append)
    output_dirs = OutputDirs(Path(folder) / "checkpoints", Path(folder) / "predictions")
    for directory in (output_dirs.checkpoints, output_dirs.predictions):
        directory.mkdir(parents=True, exist_ok=True)
    return context, make_loop(context, output_dirs, SilentListener(), StopRequest())


def train(values, folder, steps, *, load=None, first=0, save=False):
    """Some steps, then an evaluation. What this rank saw and has."""
    context, loop = open_pictures(values, folder)
    loop.progress.step = first
    if load is not None:
        load_checkpoint(context.engine, open_checkpoint(Path(load)))
    context.engine.model.train()
    losses, norms, idle = [], [], []
    for _, result in zip(range(steps), loop.steps(), strict=False):
        losses.append(result.loss)
        norms.append(result.grad_norm)
        idle.append(result.waiting_seconds)
    if save:
        loop.save()
        loop.saver.finish()
    saved = str(loop.saver.latest.path) if loop.saver.latest else ""
    evaluation = loop.measure("validation")
    state = context.engine.full_state_dict()
    held = [p for p in context.engine.module.parameters() if not p.is_meta]
    moments = [value.numel() for one in context.engine.inner_optimizer.state.values() for value in one.values()]
    loop.saver.close()
    return {
        "losses": losses, "norms": norms, "evaluation": evaluation.scalars, "count": evaluation.num_examples,
        "weights": state, "held": sum(p.numel() for p in held), "moments": sum(moments), "idle": idle, "saved": saved,
    }  # fmt: skip
