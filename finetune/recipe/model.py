"""`model:` and `adapter:`: what is fine-tuned, and how much of it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from finetune.recipe.section import Section

# What a file may contain: the values below, and an old spelling that is accepted but not offered.
OLD_SPELLING = WithJsonSchema({"const": "synchronised", "type": "string", "deprecated": True})
BatchNorm = Literal["auto", "synchronized", "local", "frozen"] | Annotated[Literal["synchronised"], OLD_SPELLING]


class ModelSection(Section):
    source: str = Field(
        default="",
        description="Hub id, folder, or package:<package>/<folder> for a folder of an installed Python package. "
        "With init: config also a bare model type, such as llama or resnet. The folder of a run means its model/. An adapter "
        "(adapter_config.json) is trained further or merged into its base, see adapter.start; without an adapter section it "
        "is merged, and all weights are trained.",
    )
    tokenizer: str = Field(
        default="",
        description="Source of the tokenizer, if it differs from source: hub id, folder, package:..., "
        "or train:<vocabulary size> for a byte-level BPE trained on the training data.",
    )
    new_tokens: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="Tokens added to the vocabulary and never split, such as ['<|tool|>']. The embeddings are resized; with an "
        "adapter, the new rows are trained too.",
    )
    processor: str = Field(default="", description="Source of the image processor, if it differs from source.")
    init: Literal["pretrained", "config"] = Field(
        default="pretrained", description="pretrained: load the weights. config: random weights from the configuration."
    )
    init_device: Literal["cpu", "gpu"] = Field(
        default="cpu",
        description="Where init: config draws the weights. cpu: as the model's constructor does, the same on every machine, "
        "but minutes for billions of parameters. gpu: on the GPU of each rank in seconds, by the model's own distributions, "
        "each module seeded by seed and its name: the same on all ranks, engines and ZeRO stages, but other numbers than "
        "cpu's (and, on a machine without a GPU, than a GPU's). They take their own memory, and that of the largest one in "
        "float32.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="Overrides for the model's configuration, such as {num_hidden_layers: 4}."
    )
    revision: str = Field(default="main", description="Branch, tag or commit on the hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Data type of the loaded weights. auto: float32, or what training.precision requires.",
    )
    quantization: Literal["none", "4bit", "8bit"] = Field(
        default="none",
        description="Quantization of the frozen base weights under an adapter: 4bit (NF4, as in QLoRA) or 8bit (LLM.int8), "
        "through bitsandbytes (pip install 'finetune[quantized]').",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        default="auto",
        description="Attention implementation. auto: the fastest one that the model and the machine support.",
    )
    kernels: Literal["auto", "none", "liger"] = Field(
        default="auto",
        description="Fused layers (RMSNorm, SwiGLU or GeGLU, rotary embeddings). liger: liger-kernel's (pip install "
        "'finetune[gpu]'), on a GPU; a CPU always computes the plain ones. The numbers are the same but for rounding. auto: "
        "liger where it is installed, the device is a GPU and it knows the model type; otherwise none.",
        json_schema_extra={"machine": True},
    )
    compile: Literal["none", "layers"] = Field(
        default="none",
        description="layers: compile the repeated layers of the model with torch.compile for passes that train; evaluations "
        "and predictions are computed as without it. Elementwise operators are fused; the first steps take seconds to minutes "
        "longer, and each compilation is reported. The numbers are the same but for rounding. Takes the place of kernels. Not "
        "with ZeRO-3, tensor, pipeline or quantization.",
        json_schema_extra={"machine": True},
    )
    float8: Literal["none", "tensorwise", "rowwise_with_gw_hp"] = Field(
        default="none",
        description="Matrix products of linear layers in float8 (torchao; pip install 'finetune[float8]') in passes that "
        "train, in bf16, on GPUs of compute capability 8.9 or higher (Ada, Hopper). tensorwise: all three products of a "
        "layer, one scale per tensor: the fastest. rowwise_with_gw_hp: one scale per token, gradients of weights in bf16: "
        "more exact, and what a token gives does not depend on the others of its micro-batch. Faster than bf16 only with "
        "compile: layers and large layers. Weights, checkpoints, evaluations and predictions stay as they are. Not with "
        "ZeRO-3, tensor, pipeline, quantization or an adapter.",
    )
    gradient_checkpointing: bool | Literal["light"] = Field(
        default=False,
        description="Recompute activations in the backward pass. true: all of a layer: the least memory, about one third more "
        "time. light: only what needs no matrix product (outputs of activation functions, norms and gated products): about a "
        "third of a layer's activations, for a few percent of the time; the same numbers to the last bit.",
        json_schema_extra={"machine": True},
    )
    batch_norm: Literal["auto", "synchronized", "local", "frozen"] = Field(
        default="auto",
        description="BatchNorm statistics. synchronized: computed over all ranks. local: computed per rank. frozen: kept as "
        "loaded. auto: frozen for pretrained weights, synchronized for random ones.",
    )
    freeze: list[str] = Field(
        default_factory=list,
        description="Modules or parameters that are not trained, by name; * matches anything, as in resnet.embedder or "
        "'*.layers.0.*'.",
    )
    trust_remote_code: bool = Field(default=False, description="Allow Python code that comes with the model to run.")

    @field_validator("config")
    @classmethod
    def _finite_numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Refuses infinity and NaN, which no JSON has: stored, they would be null."""
        try:
            json.dumps(value, allow_nan=False, default=str)
        except ValueError:
            raise PydanticCustomError("no_finite_number", "holds a number that is not finite") from None
        return value

    @field_validator("batch_norm", mode="before", json_schema_input_type=BatchNorm)
    @classmethod
    def _american_spelling(cls, value: Any) -> Any:
        """Older recipes and run folders say `synchronised`."""
        return "synchronized" if value == "synchronised" else value


class AdapterSection(Section):
    kind: Literal["lora", "rslora", "dora"] = Field(default="lora", description="Kind of low-rank adapter (peft).")
    rank: int = Field(
        default=8,
        ge=1,
        le=65_536,
        description="Rank of the update matrices. A higher rank can learn more and costs more.",
    )
    alpha: float = Field(
        default=16.0, gt=0, le=1e9, description="The update is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank))."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the input of the adapter.")
    targets: Literal["all-linear"] | list[str] = Field(
        default="all-linear", description="Modules that get an adapter: all-linear, or a list of name suffixes."
    )
    save_modules: list[str] = Field(
        default_factory=list,
        description="Modules trained and saved in full beside the adapter. The task adds new heads itself.",
    )
    start: Literal["continue", "merge"] = Field(
        default="continue",
        description="How to start if model.source is an adapter. continue: train it further, with its own kind, rank, alpha, "
        "targets and save_modules. merge: merge it into its base, and add a new adapter.",
    )
