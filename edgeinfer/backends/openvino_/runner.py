"""Running a model that OpenVINO compiled.

Where the time of a call goes when the model is small (medians): OpenVINO's own inference about 6 µs, its
Python dispatch of inputs and outputs (`compiled_model(x)`) as much again or more. So requests are kept with
their input tensors set, inputs are copied into those, and the extension's `infer` is called directly. The
extension copies the outputs into new arrays, which the caller owns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.backends.openvino_.binding import OpenVINOBinding
from edgeinfer.backends.openvino_.compile import Compiled
from edgeinfer.backends.openvino_.engine import NO_INPUTS, Engine, Infer
from edgeinfer.backends.openvino_.tensors import CheckedInput, new_tensor
from edgeinfer.backends.reports import ExecutionReport, LayerTime

__all__ = ["OpenVINORunner"]

# The shapes of its inputs that are not fixed, how to run it, the inputs that are only copied, the others, the
# request itself, and what it runs. A plain tuple, because it is unpacked on each run, and Python unpacks no
# other type as quickly.
Shapes: TypeAlias = "tuple[tuple[int, ...], ...]"
_Request: TypeAlias = (
    "tuple[Shapes, Infer, tuple[tuple[str, np.ndarray], ...], tuple[CheckedInput, ...], Any, Compiled]"
)


@final
class OpenVINORunner:
    """Runs one graph. Each call takes a request from a pool, so threads do not wait for each other.

    Args:
        ov: The `openvino` module.
        compile_model: Compiles the graph: `given` are inputs with a default that are inputs here, not
            constants; with `counting`, with performance counters.
        device: The device name that it is compiled for.
        signature: The inputs and outputs, where they are known.
    """

    thread_safe = True
    takes_optional_inputs = True

    def __init__(
        self,
        ov: Any,
        compile_model: Callable[..., Compiled],
        device: str,
        signature: Signature | None = None,
    ) -> None:
        self._engine = Engine(ov, compile_model, signature)
        self._compile_model = compile_model
        self._device = device
        self._optional = frozenset(spec.name for spec in signature.optional) if signature else frozenset()
        self._variants: dict[frozenset[str], OpenVINORunner] = {}
        self._lock = threading.Lock()
        ports = zip(self._engine.current().model.inputs, self._engine.input_names, strict=True)
        self._moving = tuple(name for port, name in ports if port.partial_shape.is_dynamic)
        converts = enumerate(self._engine.converts)
        self._converts = tuple((index, convert) for index, convert in converts if convert is not None)

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Sequence[np.ndarray]:
        """Run once; see `Runner`."""
        if self._optional and not self._optional.isdisjoint(feeds):
            return self._variant(feeds).run(feeds)
        engine = self._engine
        pool = engine.pool  # replaced once requests are out of date, so that a late one is dropped with it
        try:
            request = pool.pop()
        except IndexError:
            request = self._new_request(feeds)
        else:
            if self._moving and request[0] != tuple([feeds[name].shape for name in self._moving]):
                request = self._new_request(feeds)
        _, infer, copied, checked, raw, compiled = request
        for name, buffer in copied:
            buffer[...] = feeds[name]
        for one in checked:
            one.put(feeds[one.name])
        outputs = [*engine.run(compiled, infer, raw, False, True).values()]
        for index, convert in self._converts:
            outputs[index] = convert(raw, index, outputs[index])
        if engine.compiled is not compiled and not engine.closed:  # a call in another thread failed meanwhile
            return self.run(feeds)
        pool.append(request)
        return outputs

    def bind(self, shapes: Mapping[str, tuple[int, ...]], /) -> OpenVINOBinding:
        """Bind buffers; see `Bindable`."""
        if not self._optional.isdisjoint(shapes):
            return self._variant(shapes).bind(shapes)
        return OpenVINOBinding(self._engine, shapes)

    def execution(self) -> ExecutionReport:
        """Return what the compiled model says of itself."""
        from edgeinfer.backends.openvino_.execution import report_of

        compiled = self._engine.current()
        return report_of(compiled.model.get_runtime_model(), device=self._device, notes=compiled.notes)

    def profile(self, feeds: Mapping[str, np.ndarray], runs: int, /) -> Sequence[LayerTime]:
        """Compile again with performance counters, and run; see `Profiles`."""
        from edgeinfer.backends.openvino_.execution import layer_times

        compiled = self._compile_model(given=self._optional.intersection(feeds), counting=True)
        counting = OpenVINORunner(self._engine.ov, lambda: compiled, self._device, self._with(feeds))
        _, infer, copied, checked, raw, _ = counting._new_request(feeds)
        for name, buffer in copied:
            buffer[...] = feeds[name]
        for one in checked:
            one.put(feeds[one.name])
        infos = []
        for _ in range(runs + 1):  # the first one warms up
            infer(NO_INPUTS, True, False)
            infos.append(raw.profiling_info)
        return layer_times(infos[1:], compiled.model.get_runtime_model())

    def close(self) -> None:
        """Free the compiled models and their requests."""
        self._engine.close()
        with self._lock:
            variants, self._variants = self._variants, {}
        for variant in variants.values():
            variant.close()
        del self._compile_model

    def _variant(self, names: Iterable[str]) -> OpenVINORunner:
        """Return the runner of a graph in which these optional inputs are inputs, not constants.

        As constants they are folded and laid out for the kernels, which is much faster; so each set of inputs
        that is given has a graph of its own, compiled when it is first asked for.
        """
        given = self._optional.intersection(names)
        with self._lock:
            found = self._variants.get(given)
            if found is None:
                compile_model = self._compile_model
                found = self._variants[given] = OpenVINORunner(
                    self._engine.ov,
                    lambda counting=False: compile_model(given=given, counting=counting),
                    self._device,
                    self._with(given),
                )
        return found

    def _with(self, names: Iterable[str]) -> Signature | None:
        """Return the signature of the graph in which these optional inputs are inputs."""
        signature = self._engine.signature
        if signature is None:
            return None
        given = self._optional.intersection(names)
        inputs = (*signature.inputs, *(spec for spec in signature.optional if spec.name in given))
        return Signature(inputs=inputs, outputs=signature.outputs)

    def _new_request(self, feeds: Mapping[str, np.ndarray]) -> _Request:
        """Return a request for inputs of these shapes."""
        engine = self._engine
        compiled = engine.current()
        infer, raw = engine.new_request(compiled)
        copied, checked = [], []
        for index, (port, name) in enumerate(zip(compiled.model.inputs, engine.input_names, strict=True)):
            kind = port.element_type
            tensor, array = new_tensor(engine.ov, kind, feeds[name].shape)
            raw.set_input_tensor(index, tensor)
            if CheckedInput.needed(kind):
                checked.append(CheckedInput(name, kind, array))
            else:
                copied.append((name, array))
        shapes = tuple([feeds[name].shape for name in self._moving])
        return shapes, infer, tuple(copied), tuple(checked), raw, compiled
