"""What the process that attacks are forked from has imported."""

import gc
import os
from contextlib import suppress
from importlib import import_module

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
for _name in (
    "finetune.cli",
    "finetune.app.evaluate",
    "finetune.app.export",
    "finetune.app.inspect",
    "finetune.app.prepare",
    "finetune.app.report",
    "finetune.app.train",
    "finetune.app.verify",
    "finetune.app.workers.preparing",
    "finetune.tracking.report",
    "finetune.tasks.text_classification.task",
    "finetune.tasks.causal_lm.task",
    "finetune.tasks.image_classification.task",
    "finetune.tasks.object_detection.task",
    "transformers.models.bert.modeling_bert",
    "transformers.models.d_fine.configuration_d_fine",
    "transformers.models.llama.modeling_llama",
    "finetune.app.predict",
    "finetune.app.chat",
    "finetune.app.serve",
    "finetune.tracking.wandb_mirror",
    "PIL.Image",
    "openpyxl",
    "scipy.optimize",
    "sklearn.metrics",
    "tests.hostile.running",
):
    with suppress(ImportError):
        import_module(_name)

gc.collect()
gc.freeze()  # a fork that counts these objects again would copy their memory
