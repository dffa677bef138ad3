"""`model:` and `adapter:` — what is tuned, and how much of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.recipe.section import Section


class ModelSection(Section):
    source: str = Field(
        default="",
        description="Hub id, folder, or package:<package>/<folder> inside an installed package. "
        "With init: config it may also be the model type alone, such as llama or resnet.",
    )
    tokenizer: str = Field(
        default="",
        description="Where the tokenizer comes from, if not from source: hub id, folder, package:..., "
        "or train:<vocabulary size>, a byte-level BPE trained on the training data.",
    )
    new_tokens: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="Tokens added to the vocabulary and never split, such as ['<|tool|>']. The embeddings grow by them; "
        "under an adapter these rows are trained too.",
    )
    processor: str = Field(default="", description="Where the image processor comes from, if not from source.")
    init: Literal["pretrained", "config"] = Field(
        default="pretrained", description="pretrained weights, or random ones made from the configuration."
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="Overrides of the model's configuration, such as {num_hidden_layers: 4}."
    )
    revision: str = Field(default="main", description="Branch, tag or commit on the hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Type that weights are loaded in; auto: float32, or what training.precision needs."
    )
    quantization: Literal["none", "4bit", "8bit"] = Field(
        default="none",
        description="The frozen weights under an adapter in 4 bits (NF4, as in QLoRA) or 8 (LLM.int8), through "
        "bitsandbytes: pip install 'finetune[quantized]'.",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        default="auto", description="Attention implementation; auto: the fastest that the model and machine have."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    batch_norm: Literal["auto", "synchronised", "local", "frozen"] = Field(
        default="auto",
        description="BatchNorm statistics: over all ranks, over one rank, or kept as loaded. "
        "auto: frozen for pretrained weights, synchronised for random ones.",
    )
    freeze: list[str] = Field(
        default_factory=list,
        description="Names of modules or weights that do not train, * for any part, such as resnet.embedder or "
        "'*.layers.0.*'.",
    )
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with the model.")


class AdapterSection(Section):
    kind: Literal["lora", "rslora", "dora"] = Field(default="lora", description="Low-rank adapter, through peft.")
    rank: int = Field(default=8, ge=1, description="Rank of the update matrices; more learns more, and costs more.")
    alpha: float = Field(default=16.0, gt=0, description="Scale: alpha / rank (rsLoRA: alpha / sqrt(rank)).")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: Literal["all-linear"] | list[str] = Field(
        default="all-linear", description="Modules that get an adapter: all-linear, or name endings."
    )
    save_modules: list[str] = Field(
        default_factory=list,
        description="Modules trained and saved whole beside the adapter; heads are added by the task.",
    )
