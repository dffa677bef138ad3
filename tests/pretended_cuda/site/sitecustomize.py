"""Python imports this as it starts, where a test put this folder on PYTHONPATH: the process pretends a CUDA device."""

import os

_HIDDEN = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or os.environ.get("DS_ACCELERATOR") == "cpu"

if "FINETUNE_TESTS_PRETEND_CUDA" in os.environ and not _HIDDEN:
    from tests.pretended_cuda.install import install_when_imported

    install_when_imported()
