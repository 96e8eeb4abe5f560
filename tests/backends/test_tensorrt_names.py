"""Every name of the vendor's API that the adapter uses is there in the real bindings of each version.

`tensorrt_names.json` holds the names of the bindings of 8.6, 10.0, 10.3, 10.16, 11.4, of the lean runtime and
of TensorRT-RTX; `tensorrt_names.py` made it. The names that the adapter uses are read from its source. A name
that some version lacks must be behind `hasattr` or `getattr`, or a feature that the version does not have.
"""

from __future__ import annotations

import ast
import functools
import json
from typing import NamedTuple

from tests.backends import tensorrt_names
from tests.backends.name_tables import NAMES, SOURCES, VERSIONS, flavour_of, kinds, trees

SIGNATURES = json.loads(tensorrt_names.SIGNATURES.read_text())
# Calls that are made with another flavour alone: a context with a configuration is RTX's.
ELSEWHERE = {("run", "ICudaEngine", "create_execution_context", "8.6")}
# What an expression of the source stands for, by file.
ROLES: dict[str, dict[str, str]] = {
    "build": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "network": "INetworkDefinition",
        "layer": "ILayer",
        "tensor": "ITensor",
    },
    "caches": {
        "config": "IBuilderConfig",
        "made": "ITimingCache",
        "engine": "ICudaEngine",
        "self.config": "IRuntimeConfig",
        "self._cache": "IRuntimeCache",
    },
    "explain": {"engine": "ICudaEngine", "inspector": "EngineInspector"},
    "load": {
        "runtime": "Runtime",
        "runtimes[0]": "Runtime",
        "runtimes[-1]": "Runtime",
        "engine": "ICudaEngine",
    },
    "parse": {"builder": "Builder", "parser": "OnnxParser", "error": "ParserError"},
    "profiles": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "network": "INetworkDefinition",
        "profile": "IOptimizationProfile",
        "tensor": "ITensor",
        "layer": "ILayer",
        "layer.get_output(index)": "ITensor",
    },
    "progress": {"config": "IBuilderConfig"},
    "refit": {
        "refitter": "Refitter",
        "parser": "OnnxParserRefitter",
        "parser.get_error(index)": "ParserError",
    },
    "run": {"self._engine": "ICudaEngine"},
    "tensors": {"engine": "ICudaEngine"},
    "graphs": {"context": "IExecutionContext"},
    "layer_times": {"context": "IExecutionContext"},
    "shapes": {"engine": "ICudaEngine"},
    "slot": {"self._context": "IExecutionContext"},
    "": {"new_runtime(flavour)": "Runtime"},
}
ROLES["backend"] = ROLES[""]  # what the file is called in a package
MODULES = ("trt", "self._trt", "self.load()")  # expressions for the module itself
# Files that only building needs: the lean runtime has none of it.
BUILDING = {"build", "parse", "profiles", "progress", "precision"}
# The feature of the table without which a name, or all of a class, is never touched.
FEATURES = {
    "ComputeCapability": "ahead_of_time",
    "EngineInspector": "inspector",
    "EngineInvalidityDiagnostics": "engine_validity",
    "EngineValidity": "engine_validity",
    "HardwareCompatibilityLevel": "hardware_compatible",
    "IBuilderConfig": "builder",
    "IBuilderConfig.builder_optimization_level": "optimization_level",
    "IBuilderConfig.hardware_compatibility_level": "hardware_compatible",
    "IBuilderConfig.max_aux_streams": "aux_streams",
    "IBuilderConfig.num_compute_capabilities": "ahead_of_time",
    "IBuilderConfig.progress_monitor": "progress_monitor",
    "IBuilderConfig.set_compute_capability": "ahead_of_time",
    "ICudaEngine.create_runtime_config": "runtime_cache",
    "ICudaEngine.streamable_weights_size": "weight_streaming",
    "IProgressMonitor": "progress_monitor",
    "IRuntimeCache": "runtime_cache",
    "IRuntimeConfig": "runtime_cache",
    "OnnxParserRefitter": "onnx_refit",
    "ParserError": "builder",
    "Refitter": "onnx_refit",
    "Runtime.engine_header_size": "engine_validity",
    "Runtime.get_engine_validity": "engine_validity",
}
# Names that come with another one, for which the source asks with `hasattr`.
WITH = {
    "EngineStat": ("ICudaEngine", "get_engine_stat"),
    "ICudaEngine.minimum_weight_streaming_budget": ("ICudaEngine", "weight_streaming_budget"),
}
# Names that are used where their successor is not there, for which the source asks.
BEFORE = {"ICudaEngine.device_memory_size": ("ICudaEngine", "device_memory_size_v2")}


class Use(NamedTuple):
    file: str
    owner: str
    name: str
    stored: bool
    line: int


@functools.cache
def uses() -> list[Use]:
    """Every attribute of the vendor's objects that the source names, but for those asked with `hasattr`."""
    found = []
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                owner = owner_of(file, node.value)
                if owner is not None and not node.attr.startswith("__"):
                    stored = isinstance(node.ctx, ast.Store)
                    found.append(Use(file, owner, node.attr, stored, node.lineno))
    return found


@functools.cache
def asked() -> set[tuple[str, str, str]]:
    """File, class and name of what the source asks for with `hasattr` or `getattr`."""
    found = set()
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
                owner = owner_of(file, node.args[0])
                if owner is not None and isinstance(node.args[1], ast.Constant):
                    found.add((file, owner, str(node.args[1].value)))
    return found


@functools.cache
def guards_of(file: str) -> set[tuple[str, str]]:
    return {(owner, name) for where, owner, name in asked() if where == file}


def owner_of(file: str, node: ast.expr) -> str | None:
    text = ast.unparse(node)
    if text in MODULES:
        return "module"
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in MODULES:
        return node.attr
    return ROLES.get(file, {}).get(text)


def test_all_names_are_there_in_every_version_that_gets_to_them() -> None:
    missing = []
    for use in uses():
        assert use.owner == "module" or use.owner in NAMES["classes"], f"{use}: add the class to CLASSES"
        missing += [
            f"{version} has no {use.owner}.{use.name} ({use.file}, line {use.line})"
            for version in VERSIONS
            if reached(use, version) and not kinds(use.owner, use.name, version)
        ]
    assert not missing, "\n".join(missing)


def reached(use: Use, version: str) -> bool:
    """Whether the adapter gets to that place with a version."""
    flavour, guards = flavour_of(version), guards_of(use.file)
    whole = use.name if use.owner == "module" else use.owner
    name = f"{use.owner}.{use.name}"
    if use.file in BUILDING and not flavour.has("builder"):
        return False
    if any(not flavour.has(FEATURES[key]) for key in (whole, name) if key in FEATURES):
        return False
    if (use.owner, use.name) in guards:
        return False
    for key in (whole, name):
        if key in WITH and WITH[key] in guards and not kinds(*WITH[key], version):
            return False
        if key in BEFORE and BEFORE[key] in guards and kinds(*BEFORE[key], version):
            return False
    return True


class Call(NamedTuple):
    use: Use
    positional: int
    keywords: frozenset[str]


@functools.cache
def calls() -> list[Call]:
    """Every call of a method or class of the vendor that the source makes."""
    found = []
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner, name = owner_of(file, node.func.value), node.func.attr
            if owner is None:
                continue
            assert not any(isinstance(argument, ast.Starred) for argument in node.args), f"{file}: {name}(*)"
            count = len(node.args)
            if owner == "module":
                owner, name = name, "__init__"
            elif name == "__init__":  # of a base: the instance is the first argument
                count -= 1
            use = Use(file, owner, name, False, node.lineno)
            found.append(Call(use, count, frozenset(str(word.arg) for word in node.keywords)))
    return found


def test_every_call_fits_a_signature_of_every_version_that_gets_to_it() -> None:
    assert len(calls()) > 60
    checked, misfits = 0, []
    for call in calls():
        use = call.use
        kept = SIGNATURES.get(f"{use.owner}.{use.name}", {})
        for version in VERSIONS:
            overloads = next((json.loads(key) for key, labels in kept.items() if version in labels), None)
            if overloads is None or not reached(use, version) or (*use[:3], version) in ELSEWHERE:
                continue  # that the name is there is the matter of the test above
            checked += 1
            if not any(fits(call, parameters) for parameters in overloads):
                misfits.append(f"{version}: {call} does not fit {overloads}")
    assert not misfits, "\n".join(misfits)
    assert checked > 300


def fits(call: Call, parameters: list[str]) -> bool:
    names = [parameter.rstrip("=") for parameter in parameters]
    given = {*names[: call.positional], *call.keywords}
    needed = {parameter for parameter in parameters if not parameter.endswith("=")}
    return call.positional <= len(names) and call.keywords <= {*names[call.positional :]} and needed <= given


def test_what_is_set_can_be_set() -> None:
    for use in uses():
        for version in VERSIONS if use.stored else ():
            found = kinds(use.owner, use.name, version)
            assert "read-only property" not in found, f"{use} in {version}"


def test_what_is_asked_for_is_there_somewhere() -> None:
    for file, owner, name in asked():
        assert any(kinds(owner, name, version) for version in VERSIONS), (
            f"{file}: no version has {owner}.{name}"
        )


def test_the_roles_are_those_of_the_source() -> None:
    """A variable that was renamed would take its names out of these tests."""
    seen = {(use.file, use.owner) for use in uses()} | {(file, owner) for file, owner, _ in asked()}
    for file in ROLES.keys() & SOURCES.keys():
        for text, owner in ROLES[file].items():
            assert (file, owner) in seen, f"{text!r} is not used in {file}"
    # A name with an underscore that the vendor has, on an expression that has no role.
    vendors = {name for members in NAMES["classes"].values() for name in members if "_" in name.strip("_")}
    strangers = []
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in vendors
                and owner_of(file, node.value) is None
            ):
                strangers.append(f"{file}: {ast.unparse(node)}")
    assert set(strangers) <= OURS, set(strangers) - OURS


# Names of ours that the vendor has, too.
OURS = {
    "build: options.max_aux_streams",
    "build: options.tactic_sources",
    "load: chosen.engine_host_code_allowed",
    "load: options.engine_host_code_allowed",
    "place: self.reallocate_output",
}
