"""Every name and keyword of torch, transformers, accelerate, peft and DeepSpeed that `finetune` uses exists in the installed
versions and in the oldest that pyproject.toml admits (recorded in tests/versions/oldest.json from an environment of them).
"""

import importlib.metadata
import json

import pytest

from tests.versions import signatures
from tests.versions.environment import RECORDED, lower_bounds
from tests.versions.methods import ATTRIBUTES, LOOKED_FOR, METHODS
from tests.versions.usage import PACKAGE, used_names

USED = {name: keywords | METHODS.get(name, set()) for name, keywords in used_names().items()}
USED |= {name: keywords for name, keywords in METHODS.items() if name not in USED}
OLDEST = json.loads(RECORDED.read_text("utf-8"))


def refused(signature, keywords):
    """The keywords that a signature does not take."""
    if signature == signatures.UNKNOWN or signatures.ANY in signature:
        return []
    return sorted(keywords - set(signature))


def is_oldest(package):
    """Whether the installed version is the one that was recorded."""
    return importlib.metadata.version(package) == OLDEST["versions"][package]


def test_the_syntax_trees_show_what_is_used():
    assert len(USED) > 200
    assert {"is_causal", "enable_gqa"} <= USED["torch.nn.functional.scaled_dot_product_attention"]
    assert USED["accelerate.DeepSpeedPlugin"] == {"hf_ds_config"}


def test_the_installed_versions_have_what_is_used():
    assert not list(faults_of_installed())


def faults_of_installed():
    for name in sorted(USED):
        signature = signatures.signature_of(name)
        if name in LOOKED_FOR and is_oldest(name.partition(".")[0]):
            if signature != signatures.MISSING:
                yield f"{name} is in the oldest version, which was recorded without it"
        elif signature == signatures.MISSING:
            yield f"{name} is not in the installed version"
        elif refused(signature, USED[name]):
            yield f"{name} is called with {sorted(USED[name])} and takes {signature}"


def test_the_oldest_versions_are_those_of_pyproject():
    bounds = {name: version.rstrip(".0") for name, version in lower_bounds().items()}
    recorded = {name: version.partition("+")[0].rstrip(".0") for name, version in OLDEST["versions"].items()}
    assert recorded == bounds, "run python -m tests.versions.environment oldest FOLDER"


def test_the_oldest_admitted_versions_have_what_is_used():
    assert not list(faults_of_oldest())


def faults_of_oldest():
    for name in sorted(USED.keys() - LOOKED_FOR.keys()):
        signature = OLDEST["signatures"].get(name)
        if signature is None:
            yield f"{name} is not recorded: run python -m tests.versions.environment oldest FOLDER"
        elif signature == signatures.MISSING:
            yield f"{name} is younger than the oldest admitted version"
        elif refused(signature, USED[name]):
            yield f"the oldest admitted {name} is called with {sorted(USED[name])} and takes {signature}"


@pytest.mark.parametrize("name", sorted(LOOKED_FOR))
def test_what_the_oldest_version_lacks_is_looked_for(name):
    assert OLDEST["signatures"][name] == signatures.MISSING, f"{name} is there: it need not be listed"
    source = (PACKAGE.parent / LOOKED_FOR[name]).read_text("utf-8")
    assert "getattr(" in source and "raise UserError" in source


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_attributes_that_libraries_set_are_still_there(name):
    assert signatures.names_attribute(ATTRIBUTES[name], name), f"{ATTRIBUTES[name]} does not name {name} any more"
    assert OLDEST["attributes"][name], f"the oldest admitted {ATTRIBUTES[name]} does not name {name}"


def test_the_list_of_attributes_is_no_longer_than_what_is_used():
    sources = "\n".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    assert len(sources) > 500_000
    assert [name for name in ATTRIBUTES if name not in sources] == []


def test_a_keyword_that_a_signature_lacks_is_found():
    assert refused(["query", "scale"], {"scale", "enable_gqa"}) == ["enable_gqa"]
    assert refused(["query", signatures.ANY], {"enable_gqa"}) == []
    assert signatures.signature_of("torch.nn.no_such_name") == signatures.MISSING
