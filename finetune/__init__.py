"""finetune: one recipe file becomes a tuned, evaluated, logged model, on one process or a thousand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.app.loaded import LoadedModel

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(source: Any, **choices: Any) -> LoadedModel:
    """A trained model to be asked from Python, in this process: `finetune predict` without files and ranks.

    source: the folder of a run (its best checkpoint), an exported `model/`, or any model folder or hub id whose
    configuration tells what it is for. choices: checkpoint ("best", "latest" or a name), task (of a model that was not
    trained here, where its configuration is ambiguous), precision ("fp32", "bf16", "fp16"), quantization ("4bit", "8bit"),
    device ("cuda:1"), trust_remote_code (run Python code that the model brings). For a model larger than one device:
    layers (numbers of the GPUs that share its layers, such as [0, 1]), memory (bytes that weights may take, by GPU or
    "cpu"), offload (a folder for weights that no memory holds).

        model = finetune.load("runs/sst2/20261127-101500-3fd2a1")
        model.predict(["a fine film", "dull"])              # [{"row": 0, "label": "good", "score": 0.98}, ...]
        model.predict([{"text": "a fine film"}], top_k=2)   # ... with the two likeliest labels
        dataset.map(model, batched=True)                    # columns label, score and error beside those of the dataset

        finetune.load("runs/sft/1").predict("Name a fruit.", new_tokens=20)[0]["text"]
        finetune.load("runs/cups/1").predict([PIL.Image.open("a.jpg")])[0]["boxes"]

    Raises: UserError if there is no such model, or its files do not determine its task.
    """
    from finetune.app.loaded import load as load_model

    return load_model(source, **choices)
