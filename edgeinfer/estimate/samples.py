"""Measuring nets to fit an estimate to: every runtime and precision of a net in turns on one thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.estimate.kernel import Kernel
from edgeinfer.estimate.synthetic import synthetic_net
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

__all__ = ["PRECISIONS", "Sample", "forms", "measure", "steady_ratio"]

PRECISIONS = ("float32", "int8")
# Runs in a row before it is another session's turn. The fastest of them counts, because other work on the
# machine can only make a run slower.
_BURST = 3
_LEAST_TURNS, _MOST_TURNS = 9, 200
_LEAST_COUNTED = 3
_PROBE = 0  # the number of a net of 0.2 ms


@final
@attrs.frozen(kw_only=True)
class Sample:
    """One measured net.

    Attributes:
        net: Its name.
        target: The backend and device, as a target's text.
        precision: What most of it is computed in: `float32` or `int8`.
        threads: Threads within an operator.
        ratio: How many times the probe's latency its own is, in turns when the machine was fast.
        probe_ms: The probe's median latency meanwhile.
        work: What it asks for.
        added_bytes: What loading and running it added to the memory of a fresh process; None where that was
            not measured.
    """

    net: str
    target: str
    precision: str
    threads: int
    ratio: float
    probe_ms: float
    work: Workload
    added_bytes: int | None = None

    @property
    def latency_ms(self) -> float:
        """Its latency, as busy as the machine was."""
        return self.ratio * self.probe_ms

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
    model: Model,
    targets: Iterable[Target],
    precisions: Iterable[str],
    *,
    shapes: Shapes | None = None,
    gains_only: bool = True,
) -> dict[tuple[str, str], Model]:
    """Return the model as each target wants it in each precision, by target and precision.

    A net that a target would leave in float has no int8 form there.

    Args:
        model: The float model.
        targets: The targets.
        precisions: `float32` and `int8`.
        shapes: Sizes of symbolic dimensions, or entire shapes.
        gains_only: Leave layers in float that gain nothing from integers, as a model to be used would be. A
            calibration needs them in integers, too: kernels that no net has get no price.
    """
    simple = FuseBatchNorm().apply(Simplify(widen_weights=True).apply(model).model).model
    feed = generate_feeds(simple.signature, shapes=shapes)
    found = {}
    for target in targets:
        for precision in precisions:
            if precision == "float32":
                found[str(target), precision] = simple
                continue
            dialect = None if gains_only else get_backend(target.backend).capabilities().dialect
            into = target if dialect is None else attrs.evolve(dialect, costs=None)
            quantize = QuantizeStatic(calibration=feed, target=into, method="minmax")
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
    seconds: float = 1.0,
    with_memory: bool = False,
) -> list[Sample]:
    """Measure the forms of one net in turns with each other and with a probe, a small net.

    On one thread of a CPU the clock is the processor time of the process. Other work on the machine makes
    that longer, too, through shared caches and execution units, but the probe's as much: so what counts is
    the ratio to the probe in the same turn.

    Args:
        net: Its name.
        models: As `forms` returns them.
        shapes: As for `forms`.
        threads: Threads within an operator.
        seconds: How long to measure, in all, in the clock's time.
        with_memory: Also measure the memory, each form in a process of its own.

    Raises:
        EdgeInferError: A form cannot be compiled or run.
    """
    artifacts = {key: _compiled(model, key[0], threads) for key, model in models.items()}
    probes = {name: _compiled(synthetic_net(_PROBE), name, threads) for name, _ in models}
    feed = generate_feeds(next(iter(models.values())).signature, shapes=shapes)[0]
    with contextlib.ExitStack() as stack:
        timed = {
            key: _Pair(
                session=stack.enter_context(load(artifact)),
                feed=feed,
                probe=stack.enter_context(load(probes[key[0]])),
                probe_feed=generate_feeds(probes[key[0]].signature)[0],
            )
            for key, artifact in artifacts.items()
        }
        options = timing_options(Target.parse(next(iter(probes))).backend, threads=threads)
        clock = timing_clock([pair.session for pair in timed.values()], options)
        _in_turns(list(timed.values()), seconds, clock)
    return [
        Sample(
            net=net,
            target=name,
            precision=precision,
            threads=threads,
            ratio=steady_ratio(pair.times, pair.probe_times),
            probe_ms=1e3 * float(np.median(pair.probe_times)),
            work=workload(models[name, precision], shapes=shapes, target=name),
            added_bytes=memory(artifacts[name, precision], feed, runs=3).added_bytes if with_memory else None,
        )
        for (name, precision), pair in timed.items()
    ]


def steady_ratio(times: Sequence[float], probe_times: Sequence[float]) -> float:
    """Return how many times the probe's time a net takes, of the turns in which the probe was fastest.

    What slows a machine down (another thread of the same core, a lower clock) does not slow all kernels
    alike. So only a quarter of the turns counts. On a machine whose speed varied by a factor of 1.8,
    estimates of held-out nets were off by 9.8 % with it, by 10.3 % with the median over all turns, and by
    20 % without probes.

    Args:
        times: Of the net, in each turn.
        probe_times: Of the probe, in the same turns.
    """
    fastest = np.argsort(probe_times)[: max(_LEAST_COUNTED, len(times) // 4)]
    return float(np.median(np.divide(times, probe_times)[fastest]))


@attrs.define(kw_only=True, eq=False)
class _Pair:
    """A net, the probe of its runtime, and the times of both, in seconds, turn by turn."""

    session: Session
    feed: Mapping[str, np.ndarray]
    probe: Session
    probe_feed: Mapping[str, np.ndarray]
    times: list[float] = attrs.field(factory=list)
    probe_times: list[float] = attrs.field(factory=list)

    def turn(self, clock: Callable[[], float]) -> None:
        self.probe_times.append(_fastest(self.probe, self.probe_feed, clock))
        self.times.append(_fastest(self.session, self.feed, clock))


def _in_turns(pairs: Sequence[_Pair], seconds: float, clock: Callable[[], float]) -> None:
    for pair in pairs:
        pair.turn(clock)
        pair.times.clear()
        pair.probe_times.clear()
    end = clock() + seconds
    for turn in range(_MOST_TURNS):
        if turn >= _LEAST_TURNS and clock() > end:
            break
        for pair in pairs if turn % 2 == 0 else reversed(pairs):
            pair.turn(clock)


def _fastest(session: Session, feed: Mapping[str, np.ndarray], clock: Callable[[], float]) -> float:
    taken = []
    for _ in range(_BURST):
        started = clock()
        session.infer(feed)
        taken.append(clock() - started)
    return min(taken)


def _compiled(model: Model, name: str, threads: int) -> Artifact:
    target = Target.parse(name)
    options = timing_options(target.backend, threads=threads)
    return compile_model(model, target.backend, device=target.device or None, options=options)
