"""The order of the layers (docs/design.md): imports point to earlier layers only, and there is no circle.

Every import counts, in functions and under TYPE_CHECKING too, but for the lazy re-exports: those of the
packages in `LAZY`, and those by which an adapter reaches its own half that compiles and explains.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "edgeinfer"

# A module belongs to the longest of these names that it begins with.
ORDER = (
    ("errors", "values"),
    ("svg",),
    ("display", "charts", "timeline", "atomic", "npz", "cpu_quota", "lazy", "forking", "plain_json"),
    ("budget",),
    ("numerics",),
    ("artifact",),
    ("feeds",),
    ("backends",),
    ("devices",),
    ("runtime",),
    ("devices.remote",),
    ("fleet.errors",),
    ("fleet.device",),
    # ---- the device line: nothing above imports onnx, onnx_ir, onnxscript, sympy or rich ----
    ("model", "terminal"),
    # The halves of the adapters that compile, and that say what ran.
    (
        "backends.onnxruntime_.execution",
        "backends.onnxruntime_.profile",
        "backends.tensorrt_.build",
        "backends.tensorrt_.parse",
        "backends.tensorrt_.parser_gaps",
        "backends.tensorrt_.precision",
        "backends.tensorrt_.progress",
    ),
    ("graph",),
    ("calibration",),
    ("transforms",),
    ("measure",),
    ("quantization.placement",),
    ("quantization.qdq",),
    ("quantization.methods",),
    ("quantization.search",),
    ("pruning.structure",),
    ("pruning.reconstruction",),
    ("pruning.budget",),
    ("pruning",),
    ("estimate",),
    ("recipe",),
    ("api",),
    ("tuning",),
    ("fleet.operator",),
    ("testing", "demo"),
    ("cli", "__main__"),
)
DEVICE_LINE = ORDER.index(("model", "terminal"))
GRAPH_PACKAGES = frozenset({"onnx", "onnx_ir", "onnxscript", "sympy", "rich"})
LAZY = frozenset({"", "transforms", "backends", "devices", "fleet", "measure", "quantization", "pruning"})


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _layer(module: str) -> int:
    best, length = -1, -1
    for index, names in enumerate(ORDER):
        for name in names:
            if (module == name or module.startswith(f"{name}.")) and len(name) > length:
                best, length = index, len(name)
    return best


def _imports(module: str) -> list[tuple[str, int]]:
    """Return the imported modules with their lines, the package's own by their name within it."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _own(name) in MODULES else node.module for name in inner]
            found += [(name, node.lineno) for name in dict.fromkeys(names)]
    return [(_own(name) if name.split(".")[0] == "edgeinfer" else f"!{name}", line) for name, line in found]


def _own(name: str) -> str:
    return name.removeprefix("edgeinfer").removeprefix(".")


def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _lazily_allowed(module: str, target: str, line: int) -> bool:
    """Whether an adapter reaches its own other half, in a function."""
    adapter = module.split(".")[:2]
    own = adapter[0] == "backends" and adapter == target.split(".")[:2] and adapter[-1].endswith("_")
    return own and line not in {node.lineno for node in _tree(module).body}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_earlier_layers(module):
    here = _layer(module)
    if module in LAZY:
        return
    assert here >= 0, f"edgeinfer.{module} is in no layer"
    upward = [
        f"{MODULES[module].relative_to(PACKAGE.parent)}:{line} imports edgeinfer.{target}"
        for target, line in _imports(module)
        if not target.startswith("!")
        and target
        and _layer(target) > here
        and not _lazily_allowed(module, target, line)
    ]
    assert not upward, "\n".join(upward)


def test_there_is_no_circle():
    edges = {
        module: {t for t, _ in _imports(module) if t in MODULES and t != module}
        for module in MODULES
        if module not in LAZY
    }
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> None:
        if module in done or module not in edges:
            return
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        path.append(module)
        for target in sorted(edges[module]):
            visit(target)
        done.add(path.pop())

    for module in edges:
        visit(module)


@pytest.mark.parametrize("module", [m for m in MODULES if m and 0 <= _layer(m) < DEVICE_LINE])
def test_above_the_device_line_graph_packages_are_not_imported(module):
    found = [
        f"line {line}: {target[1:]}"
        for target, line in _imports(module)
        if target.startswith("!") and target[1:].split(".")[0] in GRAPH_PACKAGES
    ]
    assert not found, found
