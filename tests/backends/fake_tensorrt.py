"""A FAKE of the TensorRT Python module, for testing the adapter's running path where there is no GPU.

It is not TensorRT: an "engine" is the ONNX model with a header, and running it is ONNX Runtime on the CPU
over the memory of `fake_cuda`. What it stands in for is the protocol: which calls there are in which version,
in which order they come, who owns what, which shapes fit. What a version lacks raises AttributeError.
"""

from __future__ import annotations

import enum
import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edgeinfer.backends.tensorrt_ import backend, caches
from edgeinfer.backends.tensorrt_.kept_engines import KeptEngines
from tests.backends.fake_cuda import FakeCuda
from tests.backends.fake_tensorrt_build import Builder, Parser
from tests.backends.fake_tensorrt_run import ParserRefitter, Refitter, Runtime


def install(
    monkeypatch: pytest.MonkeyPatch,
    version: str = "11.4.0.1",
    *,
    module: str = "tensorrt",
    lean: str | None = None,
    gpus: tuple[tuple[str, str], ...] = (("Fake GPU", "8.6"),),
) -> SimpleNamespace:
    """Put the fakes in place of the real modules; returns `trt`, `cuda` and `builds` (one record a build).

    Args:
        monkeypatch: Pytest's.
        version: The version.
        module: `tensorrt`, `tensorrt_rtx` or `tensorrt_lean`.
        lean: The version of a lean runtime beside it, or None.
        gpus: Name and compute capability of each GPU.
    """
    monkeypatch.setattr(caches, "_KEPT", {})
    monkeypatch.setattr(backend, "ENGINES", KeptEngines())
    cuda = FakeCuda(*gpus)
    trt = make_module(module, version, cuda)
    modules = {module: trt}
    if lean is not None:
        modules["tensorrt_lean"] = make_module("tensorrt_lean", lean, cuda)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, made in modules.items():
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: (
            (modules[name].__spec__ if name in modules else None)
            if name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean")
            else real(name, package)
        ),
    )
    return SimpleNamespace(trt=trt, cuda=cuda, builds=trt.builds)


def reinstall(monkeypatch: pytest.MonkeyPatch, fake: SimpleNamespace) -> None:
    """Put the same fakes in place again, after a test has undone its patches."""
    monkeypatch.setitem(sys.modules, fake.trt.__name__, fake.trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake.cuda)


def make_module(name: str, version: str, cuda: FakeCuda) -> Any:
    numbers = tuple(int(part) for part in version.split(".")[:2])
    rtx = name == "tensorrt_rtx"
    lean = name == "tensorrt_lean"
    weak = not rtx and numbers < (10, 0)
    trt: Any = ModuleType(name)
    trt.__version__ = version
    trt.__spec__ = importlib.machinery.ModuleSpec(name, None)
    trt.builds = []
    trt.fail_runtime = False
    trt.while_building = None  # a function of the logger that a test wants called during a build
    trt.cuda, trt.weak, trt.rtx, trt.lean, trt.numbers = cuda, weak, rtx, lean, numbers

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    trt.ILogger = ILogger
    trt.IOutputAllocator = type("IOutputAllocator", (), {})
    trt.IProfiler = type("IProfiler", (), {})
    if not weak:
        trt.IProgressMonitor = type("IProgressMonitor", (), {})
    flags = ["TF32", "GPU_FALLBACK", "SPARSE_WEIGHTS", "REFIT"]
    flags += ["FP16", "INT8"] if weak else ["STRIP_PLAN", "WEIGHT_STREAMING"]
    flags += ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"] if numbers >= (8, 6) else []
    trt.BuilderFlag = enum.Enum("BuilderFlag", flags)
    creation = [
        *(["EXPLICIT_BATCH"] if numbers < (11, 0) and not rtx else []),
        *([] if weak else ["STRONGLY_TYPED"]),
    ]
    if not lean:
        trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", creation, start=0)
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE", "DLA_MANAGED_SRAM"])
    levels = ["NONE", "AMPERE_PLUS"] + (["SAME_COMPUTE_CAPABILITY"] if rtx or numbers >= (10, 16) else [])
    trt.HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", levels)
    trt.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["DETAILED"])
    libraries = [] if rtx or numbers >= (11, 0) else ["CUBLAS", "CUBLAS_LT", "CUDNN"]
    sources = [*libraries, "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    trt.TacticSource = enum.IntEnum("TacticSource", sources, start=0)
    trt.DeviceType = enum.Enum("DeviceType", ["GPU", "DLA"])
    trt.LayerInformationFormat = enum.Enum("LayerInformationFormat", ["JSON"])
    if rtx:
        trt.ComputeCapability = enum.Enum(
            "ComputeCapability", ["SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
        )
        trt.EngineValidity = enum.Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])

        class EngineInvalidityDiagnostics:
            VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER = 1, 2, 4

        trt.EngineInvalidityDiagnostics = EngineInvalidityDiagnostics
    trt.Runtime = lambda logger: Runtime(trt, logger)
    if lean:
        return trt
    trt.Builder = lambda logger: Builder(trt, logger)
    trt.OnnxParser = lambda network, logger: Parser(trt, network)
    trt.Refitter = lambda engine, logger: Refitter(engine)
    if not weak:
        trt.OnnxParserRefitter = lambda refitter, logger: ParserRefitter(refitter)
    return trt
