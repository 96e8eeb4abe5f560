"""A FAKE of the TensorRT Python module, for testing the adapter's running path where there is no GPU.

It is not TensorRT: an "engine" is the ONNX model with a header, and running it is ONNX Runtime on the CPU
over the memory of `fake_cuda`. What it stands in for is the protocol: which calls there are in which version,
in which order they come, who owns what, which shapes fit. What a version lacks raises AttributeError.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import json
import sys
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeinfer.backends.tensorrt_ import backend, caches
from edgeinfer.backends.tensorrt_.kept_engines import KeptEngines
from tests.backends.fake_cuda import FakeCuda

MAGIC = b"FAKE"
Shape = tuple[int, ...]


class DataType(enum.Enum):
    FLOAT, HALF, INT32, INT64, BOOL, INT8, UINT8 = range(7)


_TYPES = {
    "float32": "FLOAT",
    "float64": "FLOAT",  # TensorRT has no more
    "float16": "HALF",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "uint8": "UINT8",
}
_NUMPY = {DataType[name]: np.dtype(numpy) for numpy, name in _TYPES.items() if numpy != "float64"}


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


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
        self.numpy = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        self.is_shape_tensor = False

    @property
    def dtype(self) -> DataType:
        return DataType[_TYPES[self.numpy.name]]


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: Any = None
        self.inputs: list[Tensor] = []

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.model.graph.output))

    def get_output(self, index: int) -> Tensor:
        return Tensor(self.model.graph.output[index])

    num_layers = property(lambda self: len(self.model.graph.node))

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_layer(self, index: int) -> Any:
        node = self.model.graph.node[index]
        known = {value.name: Tensor(value) for value in self.model.graph.output}
        static = SimpleNamespace(shape=())
        return SimpleNamespace(
            name=node.name,
            op_type=node.op_type,
            num_outputs=len(node.output),
            get_output=lambda output: known.get(node.output[output], static),
        )


class ParserError:
    def __init__(self, index: int, name: str, text: str, operator: str = "") -> None:
        self._index, self._name, self._text, self._operator = index, name, text, operator

    def node(self) -> int:
        return self._index

    def desc(self) -> str:
        return self._text


class NamingParserError(ParserError):
    """What errors have from 10.0 on."""

    def node_name(self) -> str:
        return self._name

    def node_operator(self) -> str:
        return self._operator

    def file(self) -> str:
        return ""


class Parser:
    def __init__(self, trt: Any, network: Network) -> None:
        self._trt, self._network = trt, network
        self._errors: list[ParserError] = []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, data: bytes) -> bool:
        if self._trt.weak and not self._network.flags & 1:
            self._errors.append(ParserError(-1, "", "This version needs EXPLICIT_BATCH"))
            return False
        model = self._network.model = onnx.load_model_from_string(data)
        weights = {tensor.name for tensor in model.graph.initializer}
        self._network.inputs = [Tensor(value) for value in model.graph.input if value.name not in weights]
        self._complain(model.graph)
        return not self._errors

    def _complain(self, graph: Any) -> None:
        """Count the nodes of each graph from 0, as the real parser does."""
        made = ParserError if self._trt.weak else NamingParserError
        for index, node in enumerate(graph.node):
            if node.op_type == "Det":
                self._errors.append(made(index, node.name, "Unsupported operator Det", "Det"))
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    self._complain(attribute.g)


class Config:
    """Takes only the attributes that its version has."""

    def __init__(self, trt: Any) -> None:
        allowed = {"profiling_verbosity", "default_device_type", "DLA_core"}
        if trt.numbers >= (8, 6) and not trt.rtx:
            allowed |= {"builder_optimization_level", "max_aux_streams", "hardware_compatibility_level"}
        allowed |= set() if trt.weak else {"progress_monitor"}
        allowed |= {"num_compute_capabilities"} if trt.rtx else set()
        self.__dict__.update(
            _trt=trt,
            _allowed=allowed,
            set={},
            flags=set(),
            pools={},
            profiles=[],
            cache=None,
            capabilities={},
        )

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self._allowed:
            raise AttributeError(f"IBuilderConfig {self._trt.__version__} has no {name}")
        self.set[name] = value

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.add(f"not {flag.name}")

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def set_tactic_sources(self, mask: int) -> bool:
        if mask == 0 and self._trt.numbers >= (11, 0):  # the fake's own rule, for there to be one
            return False
        self.__dict__["sources"] = mask
        return True

    def set_compute_capability(self, capability: Any, index: int) -> None:
        self.capabilities[index] = capability.name

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=data, serialize=lambda: data + b"t")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.data and set(cache.data) != {ord("t")}:
            return False
        self.__dict__["cache"] = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache

    def can_run_on_DLA(self, layer: Any) -> bool:
        return layer.op_type == "Relu"


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Shape, opt: Shape, high: Shape) -> None:
        self.shapes[name] = [list(low), list(opt), list(high)]


class Builder:
    def __init__(self, trt: Any, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self._device = trt.cuda.device

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config(self._trt)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> Any:
        self._trt.builds.append(SimpleNamespace(network=network, config=config, device=self._device))
        if self._trt.cuda.gpus:
            self._trt.cuda.assert_current(self._device, "a builder")
        if self._trt.while_building is not None:
            self._trt.while_building(self._logger)
        types = {node.op_type for node in network.model.graph.node}
        if self._trt.weak and types & {"QuantizeLinear"} and "INT8" not in config.flags:
            self._logger.log(1, "Q/DQ layers need the INT8 flag")
            return None
        if self._trt.weak and "NonZero" in types and not config.profiles:
            self._logger.log(1, "Profile kOPT values are not self-consistent. need profile")
            return None
        if "Einsum" in types:
            name = next(node.name for node in network.model.graph.node if node.op_type == "Einsum")
            self._logger.log(1, f"Internal Error ({name} + relu has no runners that implement it)")
            return None
        monitor = config.set.get("progress_monitor")
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            for step in range(2):
                if not monitor.step_complete("Building engine", step):
                    self._logger.log(1, "BuildCanceled")
                    return None
            monitor.phase_finish("Building engine")
        if self._trt.rtx and {"REFIT", "STRIP_PLAN"} & config.flags and not self._trt.cuda.gpus:
            self._logger.log(
                0, "Error Code 1: Myelin (graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed.)"
            )
            return None
        head = {
            "version": self._trt.__version__,
            "profiles": config.profiles,
            "flags": sorted(config.flags),
        }
        model = network.model
        if "STRIP_PLAN" in config.flags:
            model = onnx.ModelProto.FromString(model.SerializeToString())
            for tensor in model.graph.initializer:
                tensor.raw_data = bytes(onnx.numpy_helper.to_array(tensor).nbytes)
        return memoryview(encode_engine(head, model))


def encode_engine(head: dict[str, Any], model: onnx.ModelProto) -> bytes:
    text = json.dumps(head).encode()
    return MAGIC + len(text).to_bytes(4, "little") + text + model.SerializeToString()


class Runtime:
    engine_header_size = 4

    def __init__(self, trt: Any, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self.version = trt.__version__
        if trt.fail_runtime:
            logger.log(1, "CUDA initialization failure with error: 35")
        self.engine_host_code_allowed = False
        self.num_DLA_cores = 2 if trt.cuda.gpus and trt.cuda.gpus[0][1] == "8.7" else 0

    def get_engine_validity(self, header: bytes) -> tuple[Any, int]:
        assert self._trt.rtx
        assert len(header) == 4
        valid = header == MAGIC
        return (
            self._trt.EngineValidity.VALID if valid else self._trt.EngineValidity.INVALID
        ), 0 if valid else 2

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        self._trt.cuda.events.append(("deserialize_cuda_engine",))
        if data[:4] != MAGIC:
            self._logger.log(1, "Magic tag does not match")
            return None
        size = int.from_bytes(data[4:8], "little")
        head = json.loads(data[8 : 8 + size])
        without_lean = "EXCLUDE_LEAN_RUNTIME" in head["flags"]
        if without_lean and head["version"] != self.version:
            self._logger.log(1, f"The engine needs the lean runtime of {head['version']}")
            return None
        if self._trt.lean and not without_lean:
            self._logger.log(1, "The lean runtime takes version-compatible engines")
            return None
        return Engine(self._trt, head, data[8 + size :])

    def load_runtime(self, path: str) -> Runtime | None:
        """The fake's libraries of lean runtimes are files that hold the version."""
        text = Path(path).read_text()
        if not text.startswith("lean "):
            self._logger.log(1, f"{path} is no lean runtime")
            return None
        made = Runtime(self._trt, self._logger)
        made.version = text.removeprefix("lean ")
        return made


class Engine:
    device_memory_size = 1000

    def __init__(self, trt: Any, head: dict[str, Any], model: bytes) -> None:
        self.trt, self.device = trt, trt.cuda.device
        self.profiles, self.flags = head["profiles"], set(head["flags"])
        self.missing = "STRIP_PLAN" in self.flags
        self._read(onnx.load_model_from_string(model))
        graph = self.graph
        weights = {tensor.name for tensor in graph.initializer}
        self.inputs = {v.name: Tensor(v) for v in graph.input if v.name not in weights}
        self.outputs = {v.name: Tensor(v) for v in graph.output}
        self.data_dependent = any(node.op_type == "NonZero" for node in graph.node)
        self.contexts = 0
        self.live: weakref.WeakSet[Context] = weakref.WeakSet()
        if "WEIGHT_STREAMING" in self.flags:
            self.streamable_weights_size = 100
            if trt.numbers >= (10, 1):
                self.weight_streaming_budget_v2 = 100
            if trt.numbers < (11, 0):
                self.weight_streaming_budget, self.minimum_weight_streaming_budget = 0, 20

    def _read(self, model: onnx.ModelProto) -> None:
        self.session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.model, self.graph = model, model.graph

    num_io_tensors = property(lambda self: len(self.inputs) + len(self.outputs))
    num_optimization_profiles = property(lambda self: max(1, len(self.profiles)))

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_dtype(self, name: str) -> DataType:
        dtype = (self.inputs | self.outputs)[name].dtype
        # TensorRT before 10 has no int64.
        return DataType.INT32 if self.trt.weak and dtype is DataType.INT64 else dtype

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Shape]:
        fixed = [self.inputs[name].shape] * 3
        return [tuple(s) for s in self.profiles[profile].get(name, fixed)] if self.profiles else fixed

    def create_runtime_config(self) -> Any:
        """RTX: contexts add to the cache of kernels."""
        assert self.trt.rtx
        return SimpleNamespace(
            create_runtime_cache=KernelCache, set_runtime_cache=lambda cache: isinstance(cache, KernelCache)
        )

    def create_execution_context(self, config: Any = None) -> Context:
        self.trt.cuda.assert_current(self.device, "an engine")
        assert not self.missing, "the engine has no weights yet"
        self.contexts += 1
        made = Context(self)
        self.live.add(made)
        return made

    def create_engine_inspector(self) -> Any:
        self.trt.cuda.assert_current(self.device, "an engine")
        assert not self.trt.lean, "the lean runtime has no inspector"
        layers = [
            {
                "Name": node.name,
                "LayerType": "gemm" if node.op_type in ("Gemm", "MatMul") else node.op_type,
                "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
                "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}],
                "TacticName": "fake_kernel",
                "Metadata": f"[ONNX Layer: {node.name}]",
            }
            for node in self.graph.node
        ]
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": layers}))


class KernelCache:
    def __init__(self) -> None:
        self._data = b""

    def deserialize(self, data: bytes) -> bool:
        if set(data) != {ord("k")}:
            return False
        self._data = data
        return True

    def serialize(self) -> bytes:
        return self._data + b"k"


class Refitter:
    """Sets weights by name; `refit_cuda_engine` puts them into the engine."""

    def __init__(self, engine: Engine) -> None:
        assert {"REFIT", "STRIP_PLAN"} & engine.flags, "the engine is not refittable"
        engine.trt.cuda.assert_current(engine.device, "an engine")
        self.engine, self.given = engine, dict[str, onnx.TensorProto]()

    def get_missing_weights(self) -> list[str]:
        return [tensor.name for tensor in self.engine.graph.initializer if tensor.name not in self.given]

    def refit_cuda_engine(self) -> bool:
        if self.engine.missing and self.get_missing_weights():
            return False
        for tensor in self.engine.graph.initializer:
            tensor.CopyFrom(self.given.get(tensor.name, tensor))
        self.engine._read(self.engine.model)
        self.engine.missing = False
        return True


class ParserRefitter:
    def __init__(self, refitter: Refitter) -> None:
        self._refitter = refitter
        self._errors: list[ParserError] = []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def refit_from_bytes(self, data: bytes) -> bool:
        return self._refit(onnx.load_model_from_string(data))

    def refit_from_file(self, path: str) -> bool:
        return self._refit(onnx.load(path))

    def _refit(self, model: onnx.ModelProto) -> bool:
        wanted = {tensor.name: tuple(tensor.dims) for tensor in self._refitter.engine.graph.initializer}
        for tensor in model.graph.initializer:
            if tuple(tensor.dims) != wanted.get(tensor.name, tuple(tensor.dims)):
                self._errors.append(ParserError(-1, "", f"{tensor.name} has another shape"))
                return False
            self._refitter.given[tensor.name] = tensor
        return True


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._cuda = engine, engine.trt.cuda
        self._shapes: dict[str, Shape] = {}
        self._out_shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self.profile = 0
        self.profiler: Any = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._cuda.events.append(("set_optimization_profile_async", index))
        self.profile, self._shapes = index, {}
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self._cuda.events.append(("set_input_shape", name, tuple(shape)))
        if self._engine.trt.weak and self._engine.profiles:
            sharing = [context for context in self._engine.live if context.profile == self.profile]
            assert sharing == [self], "version 8 crashes when two contexts have one profile"
        low, _, high = self._engine.get_tensor_profile_shape(name, self.profile)
        self._shapes[name] = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self._engine.inputs if name not in self._shapes]
        if not missing:
            feeds = {n: np.zeros(s, self._engine.inputs[n].numpy) for n, s in self._shapes.items()}
            found = self._engine.session.run(None, feeds)
            for (name, tensor), array in zip(self._engine.outputs.items(), found, strict=True):
                self._out_shapes[name] = tensor.shape if self._engine.data_dependent else array.shape
        return missing

    def get_tensor_shape(self, name: str) -> Shape:
        return self._shapes[name] if name in self._shapes else self._out_shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._cuda.events.append(("set_tensor_address", name))
        assert address % 256 == 0, "TensorRT wants addresses of 256 bytes"
        self._addresses[name] = address
        return address != 0

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self._allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._cuda.assert_current(self._engine.device, "an engine")
        self._cuda.events.append(("execute_async_v3", stream))
        # The addresses count at the time of the call, as they do in a captured graph.
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        assert set(shapes) == set(self._engine.inputs), "input shapes are missing"
        runs = self._cuda.stream_of(stream)
        runs.enqueue(lambda: self._compute(addresses, shapes))
        if self.profiler is not None:  # then the call waits for the end, and reports
            assert runs.recording is None, "a graph that is captured has no layers to report"
            self._cuda.cudaStreamSynchronize(runs)
            for index, node in enumerate(self._engine.graph.node):
                self.profiler.report_layer_time(node.name, 0.001 * (index + 1))
        return True

    def _compute(self, addresses: dict[str, int], shapes: dict[str, Shape]) -> None:
        feeds = {}
        for name, shape in shapes.items():
            dtype = _NUMPY[self._engine.get_tensor_dtype(name)]
            size = int(np.prod(shape)) * dtype.itemsize
            block = self._cuda.bytes_at(addresses[name], size, "device")
            array = np.frombuffer(block, dtype, int(np.prod(shape))).reshape(shape)
            feeds[name] = array.astype(self._engine.inputs[name].numpy)
        for name, array in zip(self._engine.outputs, self._engine.session.run(None, feeds), strict=True):
            written = array.astype(_NUMPY[self._engine.get_tensor_dtype(name)])
            address = addresses.get(name, 0)
            if name in self._allocators:
                address = self._allocators[name].reallocate_output(name, address, written.nbytes, 256)
                if address == 0:  # no room: the inference fails
                    continue
                self._allocators[name].notify_shape(name, written.shape)
            self._cuda.bytes_at(address, written.nbytes, "device")
            ctypes.memmove(address, written.ctypes.data, written.nbytes)


class DeviceTensor:
    """An array of the fake device memory with `__cuda_array_interface__`, as PyTorch or CuPy have."""

    def __init__(
        self, cuda: FakeCuda, array: np.ndarray, *, stream: int | None = None, device: int = 0
    ) -> None:
        self._cuda, self._device = cuda, device
        with cuda.used(device):
            self.pointer = cuda.cudaMalloc(max(1, array.nbytes))[1]
        ctypes.memmove(self.pointer, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        self.__cuda_array_interface__ = {
            "data": (self.pointer, False),
            "shape": array.shape,
            "typestr": array.dtype.str,
            "strides": None,
            "version": 3,
            "stream": stream,
        }

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("can't convert a device tensor to numpy: the adapter must not try")

    def free(self) -> None:
        with self._cuda.used(self._device):
            self._cuda.cudaFree(self.pointer)
