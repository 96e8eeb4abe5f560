"""The half of the FAKE TensorRT that builds: network, parser, configuration, builder. See `fake_tensorrt`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx

from tests.backends.fake_tensorrt_run import ParserError, Shape, Tensor, encode_engine


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
