"""Measuring nets to fit an estimate to: every runtime and precision of a net in turns on one thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError
from edgeinfer.estimate.kernel import Kernel
from edgeinfer.estimate.workload import Workload, workload
from edgeinfer.feeds.generate import generate_feeds
from edgeinfer.feeds.shapes import Shapes
from edgeinfer.graph.build import compile_model
from edgeinfer.measure.timing import timing_clock, timing_options
from edgeinfer.model.model import Model
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.runtime.memory import memory
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session
from edgeinfer.transforms.fuse_batchnorm import FuseBatchNorm
from edgeinfer.transforms.simplify import Simplify

__all__ = ["PRECISIONS", "Sample", "forms", "measure"]

PRECISIONS = ("float32", "int8")
# Runs in a row before it is another session's turn. The fastest of them counts, because other work on the
# machine can only make a run slower.
_BURST = 3
_LEAST_TURNS, _MOST_TURNS = 7, 200


@final
@attrs.frozen(kw_only=True)
class Sample:
    """One measured net.

    Attributes:
        net: Its name.
        target: The backend and device, as a target's text.
        precision: What most of it is computed in: `float32` or `int8`.
        threads: Threads within an operator.
        latency_ms: The median over the turns.
        work: What it asks for.
        added_bytes: What loading and running it added to the memory of a fresh process; None where that was
            not measured.
    """

    net: str
    target: str
    precision: str
    threads: int
    latency_ms: float
    work: Workload
    added_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-compatible values."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sample:
        """Read what `to_dict` wrote."""
        work = dict(values["work"])
        work["kernels"] = [Kernel(**kernel) for kernel in work["kernels"]]
        return cls(**{**values, "work": Workload(**work)})


def forms(
    model: Model, targets: Iterable[Target], precisions: Iterable[str], *, shapes: Shapes | None = None
) -> dict[tuple[str, str], Model]:
    """Return the model as each target wants it in each precision, by target and precision.

    A net that a target would leave in float has no int8 form there.

    Args:
        model: The float model.
        targets: The targets.
        precisions: `float32` and `int8`.
        shapes: Sizes of symbolic dimensions, or entire shapes.
    """
    simple = FuseBatchNorm().apply(Simplify().apply(model).model).model
    feed = generate_feeds(simple.signature, shapes=shapes)
    found = {}
    for target in targets:
        for precision in precisions:
            if precision == "float32":
                found[str(target), precision] = simple
                continue
            quantize = QuantizeStatic(calibration=feed, target=target, method="minmax")
            result = quantize.apply(simple)
            if result.report.modified:
                found[str(target), precision] = result.model
    return found


def measure(
    net: str,
    models: Mapping[tuple[str, str], Model],
    *,
    shapes: Shapes | None = None,
    threads: int = 1,
    seconds: float = 0.6,
    with_memory: bool = False,
) -> list[Sample]:
    """Measure the forms of one net in turns.

    On one thread of a CPU the clock is the processor time of the process, which other work on the machine
    hardly touches.

    Args:
        net: Its name.
        models: As `forms` returns them.
        shapes: As for `forms`.
        threads: Threads within an operator.
        seconds: How long to measure, in all.
        with_memory: Also measure the memory, each form in a process of its own.

    Raises:
        EdgeInferError: A form cannot be compiled or run.
    """
    found = []
    with contextlib.ExitStack() as stack:
        sessions: dict[tuple[str, str], Session] = {}
        artifacts = {}
        for (name, precision), model in models.items():
            target = Target.parse(name)
            options = timing_options(target.backend, threads=threads)
            artifact = compile_model(model, target.backend, device=target.device or None, options=options)
            artifacts[name, precision] = artifact
            sessions[name, precision] = stack.enter_context(load(artifact))
        feed = generate_feeds(next(iter(models.values())).signature, shapes=shapes)[0]
        clock = timing_clock(sessions.values(), timing_options(target.backend, threads=threads))
        latencies = _in_turns(sessions, feed, seconds, clock)
        for key, session in sessions.items():
            dialect = get_backend(session.backend).capabilities().dialect
            added = None
            if with_memory:
                added = memory(artifacts[key], feed, runs=3).added_bytes
            found.append(
                Sample(
                    net=net,
                    target=key[0],
                    precision=key[1],
                    threads=threads,
                    latency_ms=1e3 * latencies[key],
                    work=workload(models[key], shapes=shapes, dialect=dialect),
                    added_bytes=added,
                )
            )
    return found


def _in_turns(
    sessions: Mapping[Any, Session], feed: Mapping[str, np.ndarray], seconds: float, clock: Callable[[], float]
) -> dict[Any, float]:
    """Return the median over the turns of each session, in seconds."""
    times: dict[Any, list[float]] = {key: [] for key in sessions}
    for session in sessions.values():
        for _ in range(3):
            session.infer(feed)
    end = time.perf_counter() + seconds
    order = list(sessions.items())
    for turn in range(_MOST_TURNS):
        if turn >= _LEAST_TURNS and time.perf_counter() > end:
            break
        for key, session in order if turn % 2 == 0 else reversed(order):
            taken = []
            for _ in range(_BURST):
                started = clock()
                session.infer(feed)
                taken.append(clock() - started)
            times[key].append(min(taken))
    return {key: float(np.median(own)) for key, own in times.items()}
