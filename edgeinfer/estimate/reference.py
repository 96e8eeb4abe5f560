"""The calibrations that come with edgeinfer, and which of them is like this machine."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from edgeinfer.devices.probe.cpu import parse_cpuinfo
from edgeinfer.devices.probe.tree import Tree
from edgeinfer.estimate.calibration import Calibration
from edgeinfer.plain_json import parse_json

__all__ = ["local_reference", "reference"]

_DEFAULT = "onnxruntime"


def local_reference(backend: str) -> Calibration:
    """Return the reference that was measured on a CPU with vectors as wide as those of this machine."""
    return reference(backend, _local_features())


def reference(backend: str, features: Iterable[str] = ()) -> Calibration:
    """Return the calibration that comes with edgeinfer: of the backend, or of ONNX Runtime for others.

    It tells how kernels compare with each other, for scaling from a measured baseline. Its milliseconds are
    those of one machine: a CPU with AVX2, or one with AVX-512 and AMX.

    Args:
        backend: The backend's name.
        features: What the CPU computes with, as `edgeinfer.devices.local()` names it.
    """
    return _read(backend, "-avx512" if "avx512f" in features else "")


@cache
def _read(backend: str, cpu: str) -> Calibration:
    folder = files("edgeinfer.estimate").joinpath("data")
    own = folder.joinpath(f"{backend}{cpu}.json")
    found = own if own.is_file() else folder.joinpath(f"{_DEFAULT}{cpu}.json")
    return Calibration.from_dict(parse_json(found.read_text(encoding="utf-8")))


@cache
def _local_features() -> frozenset[str]:
    return parse_cpuinfo(Tree().read("proc/cpuinfo"))[1]
