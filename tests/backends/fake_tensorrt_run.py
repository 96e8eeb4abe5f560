"""The half of the FAKE TensorRT that runs: engines over ONNX Runtime. See `fake_tensorrt`."""

from __future__ import annotations

import ctypes
import enum
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

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


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
        self.numpy = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        self.is_shape_tensor = False

    @property
    def dtype(self) -> DataType:
        return DataType[_TYPES[self.numpy.name]]


class ParserError:
    def __init__(self, index: int, name: str, text: str, operator: str = "") -> None:
        self._index, self._name, self._text, self._operator = index, name, text, operator

    def node(self) -> int:
        return self._index

    def desc(self) -> str:
        return self._text


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
