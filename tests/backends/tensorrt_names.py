"""Reads the names of the vendor's API from its real Python bindings, and keeps them in `tensorrt_names.json`.

What their methods take is kept in `tensorrt_signatures.json`.

    python tests/backends/tensorrt_names.py            # writes the file again
    python tests/backends/tensorrt_names.py --check    # says whether it is what the bindings say

The wheels of the bindings (about 1 MB each, from PyPI) come without the libraries that they are linked with.
Their few C entry points are stubbed by a library of a few lines, so that they import on any x86-64 machine
with a C compiler. Nothing of TensorRT runs. The versions on PyPI have wheels for CPython 3.8 to 3.12.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_suffix(".json")
SIGNATURES = Path(__file__).with_name("tensorrt_signatures.json")

# What is asked for: the first and last version of each row of the adapter's table that PyPI has, JetPack's
# 10.3, and the flavours beside plain TensorRT. By label: the distribution, its version, its module.
BINDINGS = {
    "8.6": ("tensorrt-bindings", "8.6.1", "tensorrt_bindings"),
    "10.0": ("tensorrt-cu12-bindings", "10.0.1", "tensorrt_bindings"),
    "10.3": ("tensorrt-cu12-bindings", "10.3.0", "tensorrt_bindings"),
    "10.16": ("tensorrt-cu12-bindings", "10.16.1.11", "tensorrt_bindings"),
    "11.4": ("tensorrt-cu13-bindings", "11.4.0.106", "tensorrt_bindings"),
    "lean 11.4": ("tensorrt-lean-cu13-bindings", "11.4.0.106", "tensorrt_lean_bindings"),
    "rtx 1.7": ("tensorrt-rtx-cu13-bindings", "1.7.1.116", "tensorrt_rtx_bindings"),
}

# The classes that the adapter talks to, and the enumerations that it takes members of.
CLASSES = (
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "DeviceType",
    "EngineInspector",
    "EngineInvalidityDiagnostics",
    "EngineStat",
    "EngineValidity",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IOutputAllocator",
    "IProfiler",
    "IProgressMonitor",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserRefitter",
    "ParserError",
    "ProfilingVerbosity",
    "Refitter",
    "Runtime",
    "TacticSource",
)

# Methods that the vendor's code calls and applications override: classes do not show them in all versions,
# the extension modules hold their names.
OVERRIDES = {
    "IOutputAllocator": ("notify_shape", "reallocate_output", "reallocate_output_async"),
    "IProfiler": ("report_layer_time",),
}

# All that the extension modules import from TensorRT; none of it is ever called here.
_STUB = "\n".join(
    f"void *{name}(void) {{ return 0; }}"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getBuilderPluginRegistry",
        "getNvOnnxParserVersion",
        "getPluginRegistry",
        "initLibNvInferPlugins",
        # TensorRT 8: the parsers of Caffe and UFF.
        "_ZN11nvuffparser15createUffParserEv",
        "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
        "_ZN14nvcaffeparser117createCaffeParserEv",
        "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
    )
)
_DOWNLOAD = ("-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
_LIBRARY = re.compile(rb"lib(?:nv|tensorrt_)\w*\.so\.\d+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory(prefix="edgeinfer-names-") as folder:
        found = collect(Path(folder))
        signatures = encode_signatures(collect_signatures(Path(folder)))
    if not check:
        PATH.write_text(encode(found))
        SIGNATURES.write_text(signatures)
    elif (encode(found), signatures) != (PATH.read_text(), SIGNATURES.read_text()):
        sys.exit(f"{PATH.name} is not what the bindings say: run this script without --check")


def collect(folder: Path) -> dict[str, Any]:
    """Return, by class and name, the versions that have it, by its kind: method, property, member, ….

    Raises:
        subprocess.CalledProcessError: There is no C compiler, or pip finds no wheel for this interpreter.
    """
    source = folder / "stub.c"
    source.write_text(_STUB)
    stub = folder / "stub.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(stub), str(source)], check=True, capture_output=True)
    by_version = {label: _names(folder / label, stub, *which) for label, which in BINDINGS.items()}
    classes: dict[str, dict[str, Any]] = {}
    for label, names in by_version.items():
        for owner, members in names.items():
            for name, kind in members.items():
                classes.setdefault(owner, {}).setdefault(name, {}).setdefault(kind, []).append(label)
    return {"versions": {label: version for label, (_, version, _) in BINDINGS.items()}, "classes": classes}


def encode(found: dict[str, Any]) -> str:
    """Return JSON with one name a line, so that a difference can be read. Where all versions agree: `all`."""

    def short(kinds: dict[str, Any]) -> str:
        return json.dumps({k: "all" if in_ == list(found["versions"]) else in_ for k, in_ in kinds.items()})

    lines = ["{", f'"versions": {json.dumps(found["versions"])},', '"classes": {']
    owners = sorted(found["classes"])
    for owner in owners:
        members = found["classes"][owner]
        lines.append(f" {json.dumps(owner)}: {{")
        lines += [
            f"  {json.dumps(name)}: {short(members[name])}{',' if name != max(members) else ''}"
            for name in sorted(members)
        ]
        lines.append(" }" + ("," if owner != owners[-1] else ""))
    return "\n".join([*lines, "}", "}", ""])


def collect_signatures(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return, by `Class.method` and by signatures, the versions that have it so; `collect` was called before.

    A signature is the names of its parameters; those with a default value end in `=`.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for label, (_, _, module) in BINDINGS.items():
        docs = _run(_DUMP_DOCS, folder / label, module)
        for method, doc in docs.items():
            key = json.dumps(_overloads(doc))
            found.setdefault(method, {}).setdefault(key, []).append(label)
    return found


def encode_signatures(found: dict[str, dict[str, list[str]]]) -> str:
    """Return JSON with one method a line."""
    rows = [f"{json.dumps(method)}: {json.dumps(found[method])}" for method in sorted(found)]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _overloads(doc: str) -> list[list[str]]:
    """Read the signatures that pybind11 writes into the docstring of a method."""
    found = []
    for inner in re.findall(r"^(?:\d+\. )?\w+\((.*?)\)(?: ->.*)?$", doc, re.MULTILINE):
        while "[" in inner:  # types have commas of their own
            inner = re.sub(r"\[[^][]*\]", "", inner)
        inner = re.sub(r"<[^<>]*>", "", inner)
        parts = [part.strip() for part in inner.split(",") if part.strip() and part.strip() not in "*/"]
        names = [re.split(r"[:=]", part)[0].strip() + ("=" if "=" in part else "") for part in parts]
        found.append(names[1:] if names[:1] == ["self"] else names)
    return found


def _run(code: str, folder: Path, module: str) -> dict[str, Any]:
    # The loader reads LD_LIBRARY_PATH when a process starts.
    started = subprocess.run(
        [sys.executable, "-c", code, str(folder), module, *CLASSES],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"LD_LIBRARY_PATH": str(folder)},
    )
    found: dict[str, Any] = json.loads(started.stdout)
    return found


def _names(folder: Path, stub: Path, distribution: str, version: str, module: str) -> dict[str, Any]:
    folder.mkdir()
    subprocess.run(
        [sys.executable, *_DOWNLOAD, "--dest", str(folder), f"{distribution}=={version}"],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (extension,) = (folder / module).glob("*.so")
    for name in set(_LIBRARY.findall(extension.read_bytes())):
        (folder / name.decode()).symlink_to(stub)
    names = _run(_DUMP, folder, module)
    for owner, methods in OVERRIDES.items():
        held = [name for name in methods if b"\0%s\0" % name.encode() in extension.read_bytes()]
        names[owner] = dict.fromkeys(held, "override")
    return names


_DUMP = """
import enum, importlib, json, sys
sys.path.insert(0, sys.argv[1])
trt = importlib.import_module(sys.argv[2])

def kind(value):
    if isinstance(value, property):
        return "property" if value.fset else "read-only property"
    return "method" if callable(value) and not isinstance(value, enum.Enum) else "value"

found = {}
for name in sys.argv[3:]:
    owner = getattr(trt, name, None)
    if owner is None:
        continue
    members = getattr(owner, "__members__", None)
    if members is not None:
        found[name] = dict.fromkeys(members, "member")
        continue
    own = {}
    for base in reversed(owner.__mro__[:-2]):
        own.update(vars(base))
    found[name] = {n: kind(v) for n, v in own.items() if not n.startswith("_")}
print(json.dumps(found))
"""


_DUMP_DOCS = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
trt = importlib.import_module(sys.argv[2])
found = {}
for name in sys.argv[3:]:
    owner = getattr(trt, name, None)
    if owner is None or hasattr(owner, "__members__"):
        continue
    own = {}
    for base in reversed(owner.__mro__[:-2]):
        own.update(vars(base))
    for method in own:
        value = getattr(owner, method, None)
        if (method == "__init__" or not method.startswith("_")) and callable(value) and value.__doc__:
            if f"{method}(" in value.__doc__:
                found[f"{name}.{method}"] = value.__doc__
print(json.dumps(found))
"""


if __name__ == "__main__":
    main()
