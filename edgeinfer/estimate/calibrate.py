"""`calibrate`: measure synthetic nets on this machine, and fit what kernels and memory cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from edgeinfer.backends.registry import get_backend, require_available
from edgeinfer.devices.profile import Target
from edgeinfer.display import track
from edgeinfer.errors import OptionsError
from edgeinfer.estimate.calibration import Calibration, MemoryPrices
from edgeinfer.estimate.estimate import Band
from edgeinfer.estimate.features import BLOCKS, INTEGER_BLOCKS, add_up
from edgeinfer.estimate.fit import cross_validated, fit_prices
from edgeinfer.estimate.samples import PRECISIONS, Sample, forms, measure
from edgeinfer.estimate.synthetic import calibration_net, synthetic_net
from edgeinfer.estimate.workload import Workload
from edgeinfer.runtime.machine import describe_machine
from edgeinfer.runtime.memory import memory

__all__ = ["calibrate", "fit_calibration"]

_LEAST_NETS = 20
# Memory is measured of each so many nets: a process takes a second or more.
_MEMORY_EVERY = 4
_MEBI = 1 << 20
# The probe was measured beside each net; when the machine was least busy it took about this percentile.
_IDLE_PERCENT = 10
_MOST_ERROR = 1.0  # of a net, as a logarithm: one that is off by far says no more than one that is just off


def calibrate(
    target: Target | str,
    *,
    nets: int = 160,
    threads: int = 1,
    seconds: float = 1.0,
    precisions: Iterable[str] = PRECISIONS,
    progress: bool | None = None,
) -> Calibration:
    """Measure synthetic nets on a target of this machine, and fit what its kernels and memory cost.

    It takes about 5 s a net. See `edgeinfer.estimate.samples.measure` for how it copes with a busy machine.

    Args:
        target: The backend, with or without a device.
        nets: How many nets, at least 20; 100 to 200 are good.
        threads: Threads within an operator, for backends with such an option.
        seconds: How long to measure each net.
        precisions: `float32`, `int8`.
        progress: Show a progress bar. None: in a terminal or a notebook only.

    Raises:
        OptionsError: There are too few nets.
        BackendUnavailableError: The target is not here.
    """
    if nets < _LEAST_NETS:
        raise OptionsError("These are too few nets.", expected=f"at least {_LEAST_NETS}", found=nets)
    parsed = Target.parse(target)
    require_available(get_backend(parsed.backend))
    samples: list[Sample] = []
    for number in track(range(nets), "Measuring nets", progress=progress):
        models = forms(calibration_net(number), [parsed], precisions, gains_only=False)
        samples += measure(
            f"synthetic-{number}",
            models,
            threads=threads,
            seconds=seconds,
            with_memory=number % _MEMORY_EVERY == 0,
        )
    return fit_calibration(samples, parsed)


def fit_calibration(
    samples: Iterable[Sample], target: Target | str, *, process_bytes: float | None = None
) -> Calibration:
    """Fit a calibration to nets that were measured.

    Args:
        samples: What `measure` returned; those of other targets are left out.
        target: The target.
        process_bytes: The memory of a process that has imported the runtime; None: measured now.

    Raises:
        OptionsError: There are too few samples of the target.
    """
    parsed = Target.parse(target)
    own = [s for s in samples if s.target == str(parsed) and not s.work.recurrent]
    if len(own) < _LEAST_NETS:
        raise OptionsError("There are too few measured nets.", where=str(parsed), found=len(own))
    capabilities = get_backend(parsed.backend).capabilities()
    probe_ms = float(np.percentile([s.probe_ms for s in own], _IDLE_PERCENT))
    measured = [1e3 * s.ratio * probe_ms for s in own]
    block, integer_block, rows, ratios = _best_blocks(own, measured)
    precisions = dict.fromkeys(s.precision for s in own)
    return Calibration(
        target=str(parsed),
        machine=describe_machine(),
        version=capabilities.version,
        threads=own[0].threads,
        nets=len({s.net for s in own}),
        prices_us=fit_prices(rows, measured),
        bands={p: band_of(ratios[[i for i, s in enumerate(own) if s.precision == p]]) for p in precisions},
        memory=_memory(own, process_bytes if process_bytes is not None else _process_bytes(parsed)),
        clock="process" if own[0].threads == 1 else "wall",
        block=block,
        integer_block=integer_block,
    )


def _best_blocks(
    own: Sequence[Sample], measured: Sequence[float]
) -> tuple[int, int | None, list[dict[str, float]], np.ndarray]:
    """Return the blocks that explain held-out nets best, the features with them, and measured / estimated."""
    nets = [s.net for s in own]

    def tried(block: int, integer_block: int | None) -> tuple[float, list[dict[str, float]], np.ndarray]:
        rows = [
            add_up(s.work.kernels, block=block, integer_block=integer_block, open_shapes=s.work.open_shapes)
            for s in own
        ]
        ratios = cross_validated(rows, measured, nets)
        return float(np.mean(np.minimum(np.abs(np.log(ratios)), _MOST_ERROR))), rows, ratios

    floats = {block: tried(block, None) for block in BLOCKS}
    block = min(floats, key=lambda size: floats[size][0])
    found: dict[int | None, tuple[float, list[dict[str, float]], np.ndarray]] = {None: floats[block]}
    if any(s.precision == "int8" for s in own):
        found |= {size: tried(block, size) for size in INTEGER_BLOCKS if size > block}
    integer_block = min(found, key=lambda size: found[size][0])
    _, rows, ratios = found[integer_block]
    return block, integer_block, rows, ratios


def band_of(ratios: np.ndarray) -> Band:
    """Return the band that 80 % of measured / estimated lie in."""
    low, high = np.percentile(ratios, (10, 90)) if len(ratios) else (0.5, 2.0)
    return Band(low=min(1.0, float(low)), high=max(1.0, float(high)))


def _memory(samples: Sequence[Sample], process_bytes: float) -> dict[str, MemoryPrices]:
    found = {}
    for precision in dict.fromkeys(s.precision for s in samples):
        own = [(s.work, float(s.added_bytes)) for s in samples if s.precision == precision and s.added_bytes]
        if len(own) >= 5:
            found[precision] = fit_memory(own, process_bytes)
    return found


def fit_memory(measured: Sequence[tuple[Workload, float]], process_bytes: float) -> MemoryPrices:
    """Fit what memory costs.

    Args:
        measured: Workloads, and what loading and running each added to a process.
        process_bytes: The process before that.
    """
    rows = [memory_features(work) for work, _ in measured]
    added = [size / _MEBI for _, size in measured]
    prices = fit_prices(rows, added)
    ratios = cross_validated(rows, added, [str(i) for i in range(len(rows))])
    return MemoryPrices(
        process_bytes=process_bytes,
        runtime_bytes=prices.get("runtime", 0.0) * _MEBI,
        kernel_bytes=prices.get("kernels", 0.0) * _MEBI,
        file=prices.get("file", 0.0),
        plan=prices.get("plan", 0.0),
        band=band_of(ratios),
    )


def memory_features(work: Workload) -> dict[str, float]:
    """Return what memory is made of, in MiB."""
    return {
        "runtime": 1.0,
        "kernels": float(len(work.kernels)),
        "file": work.file_bytes / _MEBI,
        "plan": work.plan_bytes / _MEBI,
    }


def _process_bytes(target: Target) -> float:
    """Measure a process that has the runtime, on the smallest net."""
    from edgeinfer.graph.build import compile_model

    artifact = compile_model(synthetic_net(8), target.backend, device=target.device or None)
    return memory(artifact, runs=1).baseline_bytes
