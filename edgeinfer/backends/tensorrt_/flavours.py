"""The flavours of TensorRT, found at run time, and the one table of what each version can do.

Whatever differs between versions is a row or a feature here; the rest of the adapter asks `flavour.has(...)`.
Sources: the Python bindings of 8.5.3, 8.6.1, 10.0.1, 10.3, 10.16, 11.4, of the lean runtime 11.4, of RTX 1.7
(a test holds the names that the adapter uses against them), and the release notes between them.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any, final

import attrs

from edgeinfer.errors import BackendUnavailableError, OptionsError

__all__ = ["BUILDERS", "INSTALL", "TABLE", "Flavour", "choose_flavour", "find_flavours"]

INSTALL = {
    "tensorrt": 'pip install "edgeinfer[tensorrt]" (servers; on Jetson, TensorRT comes with JetPack)',
    "tensorrt-rtx": 'pip install "edgeinfer[tensorrt-rtx]" (GeForce RTX and RTX PRO; builds without a GPU)',
    "tensorrt-lean": "pip install tensorrt-lean-cu13 (runs engines that were built with version_compatible)",
}
BUILDERS = {name: line for name, line in INSTALL.items() if name != "tensorrt-lean"}


@final
@attrs.frozen(kw_only=True)
class Flavour:
    """One range of versions of one TensorRT package.

    Attributes:
        name: `tensorrt`, `tensorrt-rtx` or, of plain TensorRT the runtime alone, `tensorrt-lean`.
        module: The Python module.
        since: The first version that the row is for; the row with the greatest `since` that fits counts.
        strongly_typed: Precision is in the graph. Otherwise builder flags permit float16 and int8.
        creation_flags: Flags of `create_network` that must be given where the enumeration has them.
        min_cuda: The oldest CUDA major version of a driver that its runtime works with.
        features: What else it can do; see the table.
        version: The version found on this machine; empty in the table.
    """

    name: str
    module: str
    since: tuple[int, int]
    strongly_typed: bool
    creation_flags: tuple[str, ...]
    min_cuda: int
    features: frozenset[str]
    version: str = ""

    def has(self, feature: str) -> bool:
        """Whether this version has a feature of the table."""
        return feature in self.features

    def supports(self, compute_capability: str) -> bool:
        """Whether it has kernels for GPUs of a compute capability, such as `8.6`.

        TensorRT-RTX has none for data-centre and Jetson GPUs: an engine builds there and does not load.
        """
        if not self.has("ahead_of_time"):
            return True
        known = [name[2:] for name in dir(self.load().ComputeCapability) if name.startswith("SM")]
        asked = int(compute_capability.replace(".", ""))
        return str(asked) in known or asked > max(map(int, known))

    def load(self) -> Any:
        """Import the module.

        Raises:
            BackendUnavailableError: It is installed and does not import.
        """
        return _import(self.name, self.module)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


_ALL = frozenset({"builder", "dla", "inspector", "refit", "sparse_weights", "tactic_sources", "timing_cache"})
# 8.6 and later.
_COMPATIBLE = frozenset(
    {"hardware_compatible", "optimization_level", "version_compatible", "aux_streams", "layer_normalization"}
)
# 10.0 and later. profile_sharing: several contexts may use one optimization profile at a time.
# unnamed_outputs: the parser takes optional outputs that are left out. onnx_refit: so does that of weights.
# new_opsets: the parser knows opset 18 and later. layer_normalization is known from 8.6 on.
_MODERN = frozenset(
    {
        "layer_normalization",
        "new_opsets",
        "onnx_refit",
        "profile_sharing",
        "progress_monitor",
        "strip_plan",
        "unnamed_outputs",
        "weight_streaming",
    }
)

TABLE = (
    Flavour(
        name="tensorrt",
        module="tensorrt",
        since=(8, 5),
        strongly_typed=False,
        creation_flags=("EXPLICIT_BATCH",),
        min_cuda=11,
        features=_ALL,
    ),
    Flavour(
        name="tensorrt",
        module="tensorrt",
        since=(8, 6),
        strongly_typed=False,
        creation_flags=("EXPLICIT_BATCH",),
        min_cuda=11,
        features=_ALL | _COMPATIBLE,
    ),
    Flavour(
        name="tensorrt",
        module="tensorrt",
        since=(10, 0),
        strongly_typed=True,
        creation_flags=("STRONGLY_TYPED",),
        min_cuda=11,
        features=_ALL | _COMPATIBLE | _MODERN,
    ),
    # Strongly typed only: BuilderFlag.FP16/INT8 and EXPLICIT_BATCH are gone; STRONGLY_TYPED is ignored.
    Flavour(
        name="tensorrt",
        module="tensorrt",
        since=(11, 0),
        strongly_typed=True,
        creation_flags=("STRONGLY_TYPED",),
        min_cuda=12,
        features=_ALL | _COMPATIBLE | _MODERN,
    ),
    # Kernels are made on the device that runs them: no tactics are timed at build time, so timing caches and
    # optimization levels do nothing, and an engine can be built for GPUs that are not there.
    Flavour(
        name="tensorrt-rtx",
        module="tensorrt_rtx",
        since=(1, 0),
        strongly_typed=True,
        creation_flags=("STRONGLY_TYPED",),
        min_cuda=12,
        features=_MODERN
        | {
            "ahead_of_time",
            "builder",
            "engine_validity",
            "inspector",
            "refit",
            "runtime_cache",
            "sparse_weights",
        },
    ),
    # It has neither builder nor parser nor inspector, and creating its runtime needs a GPU.
    Flavour(
        name="tensorrt-lean",
        module="tensorrt_lean",
        since=(8, 6),
        strongly_typed=False,
        creation_flags=(),
        min_cuda=11,
        features=frozenset(),
    ),
    Flavour(
        name="tensorrt-lean",
        module="tensorrt_lean",
        since=(10, 0),
        strongly_typed=True,
        creation_flags=(),
        min_cuda=12,
        features=frozenset({"profile_sharing"}),
    ),
)


def find_flavours() -> tuple[Flavour, ...]:
    """Return the flavours that are installed and known, with their versions; plain TensorRT first.

    Raises:
        BackendUnavailableError: One is installed and does not import, or is older than all of the table.
    """
    found = []
    for name, module in dict.fromkeys((row.name, row.module) for row in TABLE):
        if importlib.util.find_spec(module) is not None:
            version = str(getattr(_import(name, module), "__version__", ""))
            found.append(_row(name, version))
    return tuple(found)


def choose_flavour(wanted: str | None) -> Flavour:
    """Return the flavour of that name, or the first that is installed, of those that build engines.

    Raises:
        BackendUnavailableError: It is not installed, or none is.
        OptionsError: There is no flavour of that name.
    """
    if wanted is not None and wanted not in BUILDERS:
        raise OptionsError(
            f"There is no flavour {wanted!r} of TensorRT that builds engines.",
            where="option flavour",
            expected=" or ".join(BUILDERS),
            found=wanted,
        )
    installed = find_flavours()
    for flavour in installed:
        if flavour.has("builder") and wanted in (None, flavour.name):
            return flavour
    raise BackendUnavailableError(
        f"{'TensorRT' if wanted is None else wanted} is not installed.",
        expected="one of the Python modules tensorrt or tensorrt_rtx" if wanted is None else wanted,
        found=", ".join(map(str, installed)) or "neither",
        hint="; or ".join(BUILDERS.values()) if wanted is None else INSTALL[wanted],
    )


def _row(name: str, version: str) -> Flavour:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    rows = [row for row in TABLE if row.name == name and row.since <= numbers]
    if not rows:
        raise BackendUnavailableError(
            f"This version of {name} is too old.",
            expected=f"{name} {min(row.since for row in TABLE if row.name == name)} or newer",
            found=version or "a module without __version__",
            hint=INSTALL[name],
        )
    return attrs.evolve(rows[-1], version=version)


def _import(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation raises OSError, ImportError, RuntimeError, …
        raise BackendUnavailableError(
            f"{name} is installed but cannot be imported: {type(error).__name__}: {error}", hint=INSTALL[name]
        ) from error
