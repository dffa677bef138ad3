"""Turn pydantic's errors into faults for users: where, the value, what is allowed, and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.errors import Fault
from finetune.recipe.document import KeyPath
from finetune.recipe.draft import Draft
from finetune.recipe.schema import Node, all_keys, choices_at, describe_allowed, description_at, keys_at, nodes_at
from finetune.recipe.secrets import mask
from finetune.recipe.yaml import describe_type
from finetune.recipe.yaml_dialect import one_line

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_SHOWN = 120  # characters of a value
MAX_FAULTS = 100  # that are described; each is compared with every key there is

# Names in other tools -> the name here, or the option of the command. Only names that mean the same thing.
ELSEWHERE = {
    "lr": "training.learning_rate",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "max_steps": "training.steps",
    "batch_size": "training.global_batch",
    "train_batch_size": "training.global_batch",
    "global_batch_size": "training.global_batch",
    "gradient_accumulation_steps": "training.global_batch",
    "micro_batch_size": "parallel.micro_batch",
    "per_device_train_batch_size": "parallel.micro_batch",
    "train_micro_batch_size_per_gpu": "parallel.micro_batch",
    "lr_scheduler": "training.schedule",
    "lr_scheduler_type": "training.schedule",
    "scheduler": "training.schedule",
    "optim": "training.optimizer",
    "warmup_ratio": "training.warmup",
    "warmup_steps": "training.warmup",
    "gradient_clipping": "training.max_grad_norm",
    "max_norm": "training.max_grad_norm",
    "nproc": "parallel.processes",
    "num_processes": "parallel.processes",
    "nproc_per_node": "parallel.processes",
    "base_model": "model.source",
    "model_name": "model.source",
    "model_name_or_path": "model.source",
    "attn_implementation": "model.attention",
    "torch_dtype": "model.dtype",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "r": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "target_modules": "adapter.targets",
    "lora_target_modules": "adapter.targets",
    "lora_target_linear": "adapter.targets",
    "modules_to_save": "adapter.save_modules",
    "path": "data.train.source",
    "dataset": "data.train.source",
    "datasets": "data.train",
    "train_file": "data.train.source",
    "validation_file": "data.validation",
    "val_set_size": "data.validation_fraction",
    "val_size": "data.validation_fraction",
    "sample_packing": "data.packing",
    "sequence_len": "options.max_length",
    "max_seq_length": "options.max_length",
    "max_seq_len": "options.max_length",
    "cutoff_len": "options.max_length",
    "chat_template": "options.template",
    "eval_steps": "evaluation.every",
    "eval_strategy": "evaluation.every",
    "evaluation_strategy": "evaluation.every",
    "evals_per_epoch": "evaluation.every",
    "metric_for_best_model": "evaluation.best",
    "save_steps": "checkpoint.every",
    "save_strategy": "checkpoint.every",
    "saves_per_epoch": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "logging_steps": "tracking.log_every",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "tf32": "training.precision",
    "report_to": "tracking.wandb",
    "wandb_project": "tracking.project",
    "run_name": "name",
    "output_dir": "the option --run-dir",
    "resume_from_checkpoint": "the option --resume",
}


def show_value(value: Any, key: str = "") -> str:
    """A value for a fault: short, on one line, without secrets."""
    masked = mask(value, key)
    text = (
        "(empty)"
        if value is None
        else " ".join(masked.split())
        if masked and isinstance(masked, str)
        else one_line(masked)
    )
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def nearest(word: str, words: Sequence[str]) -> str:
    """The nearest word, "" if none is close: `adamw_torch` is adamw rather than adamw_8bit."""
    lower = {item.lower(): item for item in words}
    found = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.8)
    begins = sorted((item for item in lower if word.lower().startswith(f"{item}_")), key=len, reverse=True)
    found = found or begins or difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.6)
    return lower[found[0]] if found else ""


def faults_of(error: ValidationError, draft: Draft, schema: Node) -> dict[KeyPath, Fault]:
    """One fault per key, however many alternatives of a union pydantic tried."""
    faults: dict[KeyPath, Fault] = {}
    found = error.errors(include_url=False, include_context=False)
    if len(found) > MAX_FAULTS:
        faults[()] = Fault(draft.place(()), "(recipe)", f"and {len(found) - MAX_FAULTS:,} more faults like these")
    for item in found[:MAX_FAULTS]:
        path = _place_of(draft, item["loc"], item["type"])
        if item["type"] == "too_short" and draft.get(path):
            continue  # pydantic counts only valid items of a list; the others are reported on their own
        if path not in faults:
            faults[path] = _fault(item["type"], item["msg"], path, draft, schema)
    return faults


def unknown_key(path: KeyPath, draft: Draft, schema: Node) -> Fault:
    """A key that its section does not have: the nearest spelling, or the section that has it."""
    key = str(path[-1])
    siblings = keys_at(schema, path[:-1])
    homes = [".".join(known) for known in all_keys(schema) if known[-1] == key]
    renamed = ELSEWHERE.get(key.lower(), "")
    near = nearest(key, siblings)
    message = "unknown key"
    if homes:
        section = homes[0].rpartition(".")[0]
        message = (
            f"unknown key here; it belongs in {section}" if section else "unknown key here; it belongs at the top level"
        )
        meant = homes[0]
    elif renamed:
        meant = renamed
    elif near:
        meant = draft.shown((*path[:-1], near))
    else:
        everywhere = {known[-1]: ".".join(known) for known in reversed(all_keys(schema))}
        meant = everywhere.get(nearest(key, list(everywhere)), "")
    allowed = ", ".join(siblings)
    where = f"the section {draft.shown(path[:-1])} takes " if len(path) > 1 else "the top level takes "
    return Fault(
        draft.place(path),
        draft.shown(path),
        message,
        value=show_value(draft.get(path), key),
        allowed="" if homes or renamed or near else where + allowed,
        nearest=meant,
    )


def _place_of(draft: Draft, location: Sequence[str | int], kind: str) -> KeyPath:
    """pydantic's location without the names of the alternatives that it tried: ("every", "int") -> ("every",)."""
    path: KeyPath = ()
    for key in location:
        if not draft.has((*path, key)):
            return (*path, key) if kind == "missing" and isinstance(key, str) else path
        path = (*path, key)
    return path


def _fault(kind: str, message: str, path: KeyPath, draft: Draft, schema: Node) -> Fault:
    if kind == "extra_forbidden":
        return unknown_key(path, draft, schema)
    nodes = nodes_at(schema, path)
    allowed = describe_allowed(nodes)
    where, key = draft.place(path), draft.shown(path) or "(recipe)"
    if kind == "missing" and not draft.has(path):
        return Fault(where, key, f"missing: {description_at(schema, path) or 'this key must be given'}")
    value = draft.get(path)
    shown = show_value(value, str(path[-1]) if path else "")
    if kind == "value_error":
        return Fault(where, key, message.removeprefix("Value error, "), shown)
    choices = choices_at(nodes)
    if kind == "literal_error" or (choices and isinstance(value, str)):
        return Fault(where, key, "not one of the choices", shown, allowed, nearest(str(value), choices))
    if kind == "string_pattern_mismatch":
        return Fault(where, key, "has characters that are not allowed", shown, allowed)
    if kind == "string_too_long":
        return Fault(where, key, f"has {len(str(value)):,} characters", shown, allowed)
    if kind in ("too_short", "string_too_short"):
        return Fault(where, key, "is empty", shown, description_at(schema, path) or allowed)
    if kind.startswith(("greater_than", "less_than", "finite")):
        return Fault(where, key, "out of range", shown, allowed)
    if kind == "string_type" and isinstance(value, (int, float, bool)):
        return Fault(where, key, "wrong type: " + describe_type(value), shown, "text", "the same in quotes")
    if value is None:
        return Fault(where, key, "has no value", allowed=description_at(schema, path) or allowed)
    if kind in ("missing", "too_long"):
        return Fault(where, key, "wrong number of values", shown, allowed)
    if "type" in kind or "parsing" in kind or kind == "int_from_float":
        return Fault(where, key, "wrong type: " + describe_type(value), shown, allowed)
    return Fault(where, key, message[:1].lower() + message[1:], shown, allowed)
