"""How a result is loaded: the classes of its task, and the Python that a model card shows. The tests run that Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune.models.auto_classes import AUTO_CLASSES
from finetune.tasks import CARDS

Kind = Literal["model", "adapter", "merged"]


@dataclass(frozen=True)
class Usage:
    """title: the task in a sentence. model, processor: classes of transformers. pipeline: the hub's tag; "" for none.

    peft: the class of peft that loads an adapter together with its base; "" where the base needs a new head first, with
    the labels of the configuration beside the adapter.
    """

    title: str
    model: str
    processor: str
    pipeline: str
    peft: str = ""


def usage_of(task: str) -> Usage:
    """From the task's card; a task or class that is not known here is loaded by the most general classes of transformers."""
    card = CARDS.get(task)
    title = card.title if card is not None and card.title else task.replace("_", " ")
    if card is None or card.model.auto_class not in AUTO_CLASSES:
        return Usage(title, "AutoModel", "AutoProcessor", "")
    found = AUTO_CLASSES[card.model.auto_class]
    return Usage(title, card.model.auto_class, found.processor, found.pipeline, found.peft)


def loading_code(usage: Usage, kind: Kind, *, new_tokens: bool = False, remote_code: bool = False) -> str:
    """Python that loads `folder` as `model` and its tokenizer or image processor.

    new_tokens: the adapter brings rows of the embeddings that the base lacks. remote_code: the model has code of its own.
    """
    trust = ", trust_remote_code=True" if remote_code else ""
    processor = {"AutoTokenizer": "tokenizer", "AutoImageProcessor": "image_processor"}.get(
        usage.processor, "processor"
    )
    load_processor = f"{processor} = {usage.processor}.from_pretrained(folder{trust})"
    folder = 'folder = "path/to/this/folder"'
    if kind != "adapter":
        imports = f"from transformers import {', '.join(sorted((usage.model, usage.processor)))}"
        lines = [imports, "", folder, load_processor, f"model = {usage.model}.from_pretrained(folder{trust})"]
    elif usage.peft:
        imports = f"from peft import {usage.peft}\nfrom transformers import {usage.processor}"
        load = f"model = {usage.peft}.from_pretrained(folder{trust})  # with the base that adapter_config.json names"
        lines = [imports, "", folder, load_processor, load]
    else:
        lines = _with_own_head(usage, folder, load_processor, new_tokens, trust)
    return "\n".join(lines)


def _with_own_head(usage: Usage, folder: str, load_processor: str, new_tokens: bool, trust: str) -> list[str]:
    """The base gets the head of the adapter's configuration; the adapter's folder then fills it."""
    grow = []
    settings = "config=config"
    if new_tokens:  # the base's own configuration, because its embeddings have fewer rows
        settings = "id2label=config.id2label, label2id=config.label2id, pad_token_id=config.pad_token_id"
        grow = ["base.resize_token_embeddings(len(tokenizer))"]
    return [
        "from peft import PeftConfig, PeftModel",
        f"from transformers import {', '.join(sorted(('AutoConfig', usage.model, usage.processor)))}",
        "",
        folder,
        load_processor,
        "config = AutoConfig.from_pretrained(folder" + trust + ")  # with the labels",
        "base = " + usage.model + ".from_pretrained(",
        "    PeftConfig.from_pretrained(folder).base_model_name_or_path,",
        f"    {settings},",
        f"    ignore_mismatched_sizes=True{trust},",
        ")",
        *grow,
        "model = PeftModel.from_pretrained(base, folder)",
    ]
