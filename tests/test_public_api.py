"""The public surface: names are there, lazily, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgeinfer as ei
from edgeinfer import errors
from edgeinfer.transforms import contract

PACKAGE = Path(ei.__file__).parent
VENDORS = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda")


@pytest.mark.parametrize("name", ei.__all__)
def test_every_public_name_is_there(name):
    assert getattr(ei, name) is not None
    assert name in dir(ei)


def test_static_tools_see_what_is_lazy():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    seen = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgeinfer")
        for alias in node.names
    }
    assert set(ei.__all__) - {"__version__"} <= seen
    # They cannot know that the package is callable.
    assert "from edgeinfer.backends.registry import backends" in ast.unparse(tree)


@pytest.mark.parametrize("package", ["transforms", "measure", "devices"])
def test_lazy_packages_are_visible_to_static_tools(package):
    module = getattr(ei, package)
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text())
    seen = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgeinfer")
        for alias in node.names
    }
    assert set(module.__all__) <= seen
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ei.nonsense  # noqa: B018


def test_importing_loads_no_vendor_and_no_onnx():
    code = (
        "import sys, edgeinfer\n"
        f"bad = set({(*VENDORS, 'onnx', 'onnx_ir', 'numpy', 'rich')!r}) & set(sys.modules)\n"
        "print(sorted(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


WITHOUT_VENDORS = f"""
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {VENDORS!r}:
            raise ImportError(f"{{name}} is not installed (by this test)")
sys.meta_path.insert(0, Refuse())
import edgeinfer
names = [m.name for m in pkgutil.walk_packages(edgeinfer.__path__, "edgeinfer.") if "__main__" not in m.name]
for name in names:
    importlib.import_module(name)
assert not edgeinfer.backends()["onnxruntime"].available
assert "onnxruntime" in edgeinfer.backends()["onnxruntime"].reason
print(len(names))
"""


def test_every_module_imports_with_no_vendor_installed():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_VENDORS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def _modules() -> list[str]:
    found = pkgutil.walk_packages(ei.__path__, "edgeinfer.")
    return [module.name for module in found if "__main__" not in module.name]


@pytest.mark.parametrize("name", _modules())
def test_modules_say_what_is_public(name):
    module = importlib.import_module(name)
    public = getattr(module, "__all__", None)
    if public is None:
        assert hasattr(module, "__path__"), f"{name} is a module without __all__"
        return
    assert len(set(public)) == len(public)
    for item in public:
        assert hasattr(module, item), f"{name}.__all__ names {item}"


def test_vendors_are_imported_only_in_their_adapter():
    for file in PACKAGE.rglob("*.py"):
        if file.parent.parent.name == "backends" and file.parent.name.endswith("_"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in VENDORS, f"{file.name} imports {name}"


def _all_errors() -> list[type[errors.EdgeInferError]]:
    return [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("cls", _all_errors())
def test_errors_are_one_tree_and_travel_between_processes(cls):
    assert issubclass(cls, ei.EdgeInferError)
    error = cls("It broke.", where="node 'a'", expected=1, found=2, hint="Mend it.", facts={"n": 3})
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.facts == {"n": 3}


def test_an_error_says_what_where_and_what_to_do():
    text = str(ei.EdgeInferError("It broke.", where="node 'a'", expected=1, found=2, hint="Mend it."))
    assert text.splitlines() == [
        "It broke.",
        "  where: node 'a'",
        "  expected: 1",
        "  found: 2",
        "  hint: Mend it.",
    ]


# What shows itself as a table and is no report of figures.
HANDLES = {"Artifact", "Backends", "Model", "Profiles", "RemoteDevice", "Session"}


def _classes_with_a_table() -> list[type]:
    found = {
        value
        for name in _modules()
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and value.__module__ == name and callable(vars(value).get("table"))
    }
    return sorted(
        (cls for cls in found if cls.__name__ not in HANDLES and not getattr(cls, "_is_protocol", False)),
        key=lambda cls: cls.__name__,
    )


@pytest.mark.parametrize("cls", _classes_with_a_table(), ids=lambda cls: cls.__name__)
def test_every_report_is_for_people_notebooks_and_programs(cls):
    assert len(_classes_with_a_table()) > 10
    for name in ("to_dict", "__str__", "_repr_html_"):
        assert name in vars(cls), f"{cls.__name__} has no {name}"


# One name for one thing; each of these is another word for it that somebody might write.
ONE_NAME = {
    "calibration": {"calibration_data", "data", "dataset"},
    "feeds": {"feed", "input_data", "inputs_source"},
    "keep_float": {"exclude", "float_nodes", "nodes_to_exclude", "skip_nodes"},
    "progress": {"show_progress", "verbose"},
    "samples": {"calibration_samples", "count", "n_samples", "num_samples"},
    "seed": {"random_state"},
    "target": {"platform", "to"},
    "threads": {"n_threads", "num_threads", "threads_per_op"},
}


def _public_callables() -> list[tuple[str, object]]:
    """The functions, and the transforms, which are called like functions."""
    modules = (ei, ei.transforms, ei.measure, ei.feeds, ei.devices)
    found = [
        (f"{module.__name__}.{name}", getattr(module, name)) for module in modules for name in module.__all__
    ]
    framework = set(contract.__all__)
    return [
        (where, value)
        for where, value in found
        if inspect.isfunction(value) or (hasattr(value, "rewrite") and where.split(".")[-1] not in framework)
    ]


def test_one_thing_has_one_name():
    names = {
        parameter: where
        for where, value in _public_callables()
        for parameter in inspect.signature(value).parameters
    }
    assert set(ONE_NAME) <= set(names), "a name of the table is used nowhere"
    wrong = {
        names[other]: (other, name) for name, others in ONE_NAME.items() for other in others & set(names)
    }
    assert not wrong


@pytest.mark.parametrize("name", sorted(set(ei.transforms.__all__) - set(contract.__all__)))
def test_transforms_that_take_samples_or_a_target_take_them_by_the_usual_name(name):
    """`optimize` hands them down by these names."""
    parameters = inspect.signature(getattr(ei.transforms, name)).parameters
    for usual in ("calibration", "target", "progress", "keep_float"):
        similar = [other for other in parameters if usual[:6] in other and other != usual]
        assert not similar, f"{name} calls it {similar}"


def test_what_takes_shapes_takes_a_batch_too():
    found = {where: set(inspect.signature(value).parameters) for where, value in _public_callables()}
    taking = {where: names for where, names in found.items() if "shapes" in names and "Fix" not in where}
    assert len(taking) >= 6
    assert all("batch" in names for names in taking.values()), taking


# By the name that is imported, the dependency that brings it.
CORE = {"attrs": "attrs", "entrypoints": "entrypoints", "google": "onnx", "numpy": "numpy", "onnx": "onnx"}
CORE |= {
    "ml_dtypes": "ml_dtypes",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "rich": "rich",
    "tomli": "tomli",
}
FLEET = {"alembic": "alembic", "fsspec": "fsspec", "sqlalchemy": "sqlalchemy", "tuf": "tuf", "urllib3": "tuf"}
FLEET |= {"cryptography": "securesystemslib[crypto]", "securesystemslib": "securesystemslib[crypto]"}
FLEET |= {"paho": "paho-mqtt", "starlette": "starlette", "uvicorn": "uvicorn", "zstandard": "zstandard"}


def test_what_is_imported_is_a_dependency():
    """Modules import at their top only what `pip install edgeinfer` brings; those of the fleet, its extra."""
    project = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    core = project.partition("\ndependencies = [")[2].partition("\n]")[0]
    for imported, brought_by in CORE.items():
        assert f'"{brought_by}>=' in core, f"{imported} is brought by no dependency"
    extra = project.partition("\nfleet = [")[2].partition("\n]")[0]
    for imported, brought_by in FLEET.items():
        assert f'"{brought_by}>=' in extra, f"{imported} is brought by no dependency"
    core_names = set(sys.stdlib_module_names) | set(CORE) | {"edgeinfer"}
    found: dict[str, str] = {}
    for file in PACKAGE.rglob("*.py"):
        allowed = core_names | (set(FLEET) if file.is_relative_to(PACKAGE / "fleet") else set())
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            found |= {name: str(file) for name in names if name.partition(".")[0] not in allowed}
    assert not found
