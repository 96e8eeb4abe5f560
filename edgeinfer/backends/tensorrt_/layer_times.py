"""How long TensorRT takes for each layer, by its own profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeinfer.backends.reports import LayerExecution, LayerTime, typical_us
from edgeinfer.backends.tensorrt_.explain import names_in

__all__ = ["LayerClock"]


class LayerClock:
    """Collects what TensorRT's profiler reports, run by run. It must outlive the contexts it listens to."""

    def __init__(self, trt: Any) -> None:
        self._runs: list[dict[str, float]] = []
        self._profiler = _profiler(trt, self._add)

    def listen(self, context: Any) -> None:
        """Take the times of an execution context, whose inferences then wait for their own end."""
        context.profiler = self._profiler

    def start_run(self) -> None:
        """Count what comes from now on as one run."""
        self._runs.append({})

    def layers(self, known: tuple[LayerExecution, ...]) -> list[LayerTime]:
        """Return the layers in the order in which they ran, by all runs but the first, which warms up.

        Args:
            known: What the engine's inspector says of the layers; may be empty.
        """
        told = {layer.name: layer for layer in known}
        runs = self._runs[1:]
        names = dict.fromkeys(name for run in runs for name in run)
        return [_layer(name, told.get(name), [run.get(name, 0.0) for run in runs]) for name in names]

    def _add(self, name: str, ms: float) -> None:
        # A layer within a loop is reported each time that it runs.
        if self._runs:
            self._runs[-1][name] = self._runs[-1].get(name, 0.0) + 1e3 * ms


def _layer(name: str, told: LayerExecution | None, times: list[float]) -> LayerTime:
    return LayerTime(
        name=name,
        op_type=told.op_type if told is not None else "",
        us=typical_us(times),
        onnx_names=(told.onnx_nodes if told is not None else ()) or names_in(name),
        kernel=told.kernel if told is not None else "",
    )


def _profiler(trt: Any, report: Callable[[str, float], None]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(layer_name, ms)

    return Profiler()
