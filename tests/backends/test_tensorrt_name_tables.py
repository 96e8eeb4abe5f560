"""The tables of names are those of the real bindings, and the fakes have no others."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeinfer.backends.tensorrt_ import build as tensorrt_build
from edgeinfer.backends.tensorrt_ import options as tensorrt_options
from edgeinfer.backends.tensorrt_ import tensors as tensorrt_tensors
from edgeinfer.backends.tensorrt_.cuda import Cuda, find_gpus
from edgeinfer.errors import InferenceError
from tests.backends import fake_tensorrt, fake_tensorrt_build, fake_tensorrt_run, tensorrt_names
from tests.backends.fake_cuda import FakeCuda
from tests.backends.name_tables import NAMES, VERSIONS, flavour_of, kinds, trees


@pytest.mark.parametrize("version", VERSIONS)
def test_the_tables_hold_names_of_the_version(version: str) -> None:
    flavour = flavour_of(version)
    members = {
        owner: {n for n in NAMES["classes"][owner] if kinds(owner, n, version)} for owner in NAMES["classes"]
    }
    assert set(tensorrt_tensors.DTYPES) <= set(NAMES["classes"]["DataType"])
    assert members["DataType"] - set(tensorrt_tensors.DTYPES) <= {"INT4", "FP4", "E8M0"}
    if not flavour.has("builder"):
        return
    for _, feature, flag in tensorrt_build._FLAGS:
        assert flag in members["BuilderFlag"] or not flavour.has(feature), flag
    if not flavour.strongly_typed:
        assert set(tensorrt_build._WEAK_FLAGS.values()) <= members["BuilderFlag"]
    assert set(flavour.creation_flags) <= members["NetworkDefinitionCreationFlag"]
    # These are asked for with `getattr`: a version that has fewer refuses the option.
    assert {pool.upper() for pool in tensorrt_options._POOLS} <= set(NAMES["classes"]["MemoryPoolType"])
    assert {name.upper() for name in tensorrt_options._SOURCES} <= set(NAMES["classes"]["TacticSource"])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_has_nothing_that_the_real_one_lacks(version: str) -> None:
    """Version 8.5 is not in the names."""
    kind, number = ("", version) if " " not in version else version.split(" ")
    trt = fake_tensorrt.make_module(f"tensorrt{kind and '_' + kind}", VERSIONS[version], FakeCuda())
    for owner in NAMES["classes"]:
        members = getattr(getattr(trt, owner, None), "__members__", {})
        for name in members:
            assert kinds(owner, name, version), f"{number} has no {owner}.{name}"
        if hasattr(trt, owner):
            assert kinds("module", owner, version), f"{version} has no {owner}"
    for fake, owner in (
        (fake_tensorrt_build.Builder, "Builder"),
        (fake_tensorrt_build.Config, "IBuilderConfig"),
        (fake_tensorrt_run.Context, "IExecutionContext"),
        (fake_tensorrt_run.Engine, "ICudaEngine"),
        (fake_tensorrt_run.KernelCache, "IRuntimeCache"),
        (fake_tensorrt_build.NamingParserError, "ParserError"),
        (fake_tensorrt_build.Network, "INetworkDefinition"),
        (fake_tensorrt_build.Parser, "OnnxParser"),
        (fake_tensorrt_run.ParserRefitter, "OnnxParserRefitter"),
        (fake_tensorrt_build.Profile, "IOptimizationProfile"),
        (fake_tensorrt_run.Refitter, "Refitter"),
        (fake_tensorrt_run.Runtime, "Runtime"),
    ):
        public = {name for base in fake.__mro__[:-1] for name in vars(base) if not name.startswith("_")}
        assert public <= set(NAMES["classes"][owner]), (
            f"{owner} has no {public - set(NAMES['classes'][owner])}"
        )


def test_cuda_python_has_what_is_called() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    called = {
        str(node.args[0].value)
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and re.fullmatch("cuda[A-Z]\\w+", str(node.args[0].value))
    }
    assert len(called) > 15
    called |= {"cudaGetErrorString", "cudaGetLastError", "cudaMemcpyKind", "cudaStreamCaptureMode"}
    assert all(hasattr(runtime, name) for name in called), called
    assert all(hasattr(FakeCuda, name) for name in called), "the fake has them, too"
    fake = {name for name in vars(FakeCuda) if name.startswith("cuda")}
    assert all(hasattr(runtime, name) for name in fake), "and nothing that the real one lacks"


def test_cuda_python_takes_our_arguments_for_memory_of_the_host() -> None:
    """Without a GPU these fail, but with an error of CUDA: an argument of a wrong type is a TypeError."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if find_gpus()[0]:
        pytest.skip("with a GPU, benchmarks/gpu/run.py does more")
    cuda = Cuda(runtime)
    memory = np.zeros(8192, np.uint8)
    assert cuda.page_lock(int(memory.ctypes.data), memory.nbytes) is False
    for call in (
        lambda: cuda.page_unlock(int(memory.ctypes.data)),
        lambda: cuda.copy_to_host(int(memory.ctypes.data), int(memory.ctypes.data), 8),
        lambda: cuda.to_device(int(memory.ctypes.data), int(memory.ctypes.data), 8, 0),
        lambda: cuda.on_device(int(memory.ctypes.data), int(memory.ctypes.data), 8, 0),
        lambda: cuda.synchronize(1),
        lambda: cuda.call("cudaPointerGetAttributes", int(memory.ctypes.data)),
        lambda: cuda.call("cudaMalloc", 8),
        cuda.stream,
        cuda.current().__enter__,
    ):
        with pytest.raises(InferenceError, match="cudaError"):
            call()


def test_the_installed_rtx_has_the_names_that_are_kept() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    if trt.__version__ != VERSIONS["rtx 1.7"]:
        pytest.skip(f"{trt.__version__} is installed")
    for owner, members in NAMES["classes"].items():
        for name in members:
            real = getattr(trt, owner, None)
            there = name in getattr(real, "__members__", {}) or hasattr(real, name)
            kept = kinds(owner, name, "rtx 1.7")
            assert there or kept in ([], ["override"]), f"{owner}.{name}"


@pytest.mark.skipif(
    not os.environ.get("EDGEINFER_TENSORRT_BINDINGS"),
    reason="set EDGEINFER_TENSORRT_BINDINGS=1 to download the real bindings (9 MB) and compare",
)
def test_the_kept_names_are_those_of_the_real_bindings(tmp_path: Path) -> None:
    try:
        found = tensorrt_names.collect(tmp_path)
    except subprocess.CalledProcessError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no C compiler, or no wheels for {sys.version_info[:2]}: {error.stderr!r}")
    assert tensorrt_names.encode(found) == tensorrt_names.PATH.read_text()
    signatures = tensorrt_names.collect_signatures(tmp_path)
    assert tensorrt_names.encode_signatures(signatures) == tensorrt_names.SIGNATURES.read_text()
