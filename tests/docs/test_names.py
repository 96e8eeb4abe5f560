"""Names that the documentation mentions exist, and docs/stability.md lists all that is public."""

from __future__ import annotations

import importlib
import re

import attrs
import pytest

import edgeinfer as ei
from edgeinfer.backends.onnxruntime_.options import OnnxRuntimeOptions
from edgeinfer.backends.openvino_.options import OpenVINOOptions
from edgeinfer.backends.registry import GROUP
from edgeinfer.fleet.device.transport import GROUP as TRANSPORTS
from tests.docs.pages import DOCS, PAGES, ROOT, TEXTS, blocks

STABILITY = (DOCS / "stability.md").read_text(encoding="utf-8")
MOST_NAMES = 60


@pytest.mark.parametrize("page", TEXTS)
def test_names_exist(page):
    """Every `ei.name` and `edgeinfer.module.name` that a page mentions can be imported."""
    text = TEXTS[page].read_text(encoding="utf-8")
    for dotted in set(re.findall(r"\bei((?:\.\w+)+)", text)):
        found: object = ei
        for name in dotted.split(".")[1:]:
            assert hasattr(found, name), f"ei{dotted}"
            found = getattr(found, name)
            if not hasattr(found, "__path__") and not isinstance(found, type(re)):
                break  # attributes of values are for the blocks to show
    for dotted in set(re.findall(r"`(edgeinfer(?:\.\w+)+)", text)) - {GROUP, TRANSPORTS, "edgeinfer.devices"}:
        module, _, name = dotted.rpartition(".")
        assert hasattr(importlib.import_module(module), name) or importlib.import_module(dotted), dotted


def public_names() -> dict[str, list[str]]:
    """The names that docs/stability.md lists, by module: in a table, or in a paragraph behind the first."""
    sections = re.findall(r"^### `([\w.]+)`\n(.*?)(?=^##|\Z)", STABILITY, re.DOTALL | re.MULTILINE)
    return {
        module: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)
        or re.findall(r"`(\w+)`", body.strip().split("\n\n")[1])
        for module, body in sections
    }


@pytest.mark.parametrize("module", public_names())
def test_every_public_name_is_listed(module):
    found, listed = set(importlib.import_module(module).__all__), public_names()[module]
    assert found - set(listed) == set(), "docs/stability.md lacks them"
    assert set(listed) - found == set(), "docs/stability.md lists what is not there"
    assert listed == sorted(listed, key=str.lower)


def test_the_package_has_few_names_each_with_a_reason():
    assert len(ei.__all__) <= MOST_NAMES
    assert f"`edgeinfer` has {len(ei.__all__)} names" in STABILITY
    reasons = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", STABILITY, re.MULTILINE))
    assert set(reasons) == set(ei.__all__)
    assert len(set(reasons.values())) == len(reasons)


def test_every_public_module_is_listed_and_has_a_page():
    """All modules that are names of `edgeinfer`, and those that authors of backends are told to import."""
    assert {f"edgeinfer.{name}" for name in ei._MODULES} - {"edgeinfer.backends"} <= set(public_names())
    text = (DOCS / "writing_a_backend.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bedgeinfer\.backends\.\w+", text))
    assert named
    assert named <= set(public_names())
    pages = "".join((DOCS / page).read_text(encoding="utf-8") for page in PAGES if page.startswith("api/"))
    documented = set(re.findall(r"^<!-- api: ([\w.]+) -->$", pages, re.MULTILINE))
    assert set(public_names()) - {"edgeinfer.testing"} <= documented


@pytest.mark.parametrize("page", TEXTS)
def test_files_exist(page):
    text = TEXTS[page].read_text(encoding="utf-8")
    for path in re.findall(r"`((?:edgeinfer|tests|benchmarks|examples|docs)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_requirements_of_a_device_are_those_of_the_file():
    (listed,) = [block.code for block in blocks("install.md", "text")]
    lines = (ROOT / "requirements-device.txt").read_text(encoding="utf-8").splitlines()
    assert listed.splitlines() == [line for line in lines if not line.startswith("#")]


def test_the_extras_of_the_install_page_are_there():
    text = (DOCS / "install.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([\w-]+)`(?:, `([\w-]+)`)? \| ", text, re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert named
    for name in {name for pair in named for name in pair if name}:
        assert re.search(rf"^{name} = \[", project, re.MULTILINE), name


def test_options_of_backends_are_listed():
    for page, options in (("onnxruntime.md", OnnxRuntimeOptions), ("openvino.md", OpenVINOOptions)):
        section = (DOCS / page).read_text(encoding="utf-8").partition("## Options")[2].partition("\n## ")[0]
        listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)))
        assert sorted(listed) == sorted(field.name for field in attrs.fields(options)), page
