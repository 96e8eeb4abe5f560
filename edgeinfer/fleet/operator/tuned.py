"""From budgets to a release: tune a model for each class of devices, and publish what was found."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.manifest import Cost
from edgeinfer.atomic import scratch_folder
from edgeinfer.budget import Budget
from edgeinfer.devices.profile import Target
from edgeinfer.devices.remote.device import RemoteDevice
from edgeinfer.display import Table
from edgeinfer.errors import OptionsError
from edgeinfer.fleet.device.release import Release
from edgeinfer.fleet.operator.variants import needs_of
from edgeinfer.graph.build import compile_model
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.tuning.fork_server import fork_server
from edgeinfer.tuning.result import TuningResult
from edgeinfer.tuning.tune import tune

__all__ = ["TunedRelease", "publish_tuned"]


@final
@attrs.frozen(kw_only=True)
class TunedRelease:
    """A release, and how each of its variants was found.

    Attributes:
        release: The release.
        results: What tuning found, by device class.
    """

    release: Release
    results: Mapping[str, TuningResult]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        return {
            "model": self.release.model,
            "version": self.release.version,
            "digest": self.release.digest,
            "results": {name: result.to_dict() for name, result in self.results.items()},
        }

    def table(self) -> Table:
        """Return one row a class: what was chosen, and the measured figures beside the limits."""
        rows = []
        for name, result in self.results.items():
            best, limits = result.best, result.budget.limits
            rows.append(
                (
                    name,
                    result.target,
                    best.candidate.describe(),
                    *(
                        _beside(found, limits.get(limit))
                        for limit, found in (
                            ("latency_p50_ms", best.latency_p50_ms),
                            ("latency_p99_ms", best.latency_p99_ms),
                            ("max_drop", best.drop),
                        )
                    ),
                )
            )
        return Table(
            title=f"{self.release.model} {self.release.version}, tuned (measured / limit)",
            columns=("class", "target", "chosen", "p50 ms", "p99 ms", "drop"),
            rows=rows,
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def publish_tuned(
    publish: Callable[..., Release],
    name: str,
    source: ModelSource,
    *,
    budgets: Mapping[str, Budget],
    targets: Mapping[str, Target | str],
    calibration: Any,
    evaluate: Callable[[Model], float] | None,
    on: Mapping[str, RemoteDevice],
    options: Mapping[str, Any] | None,
    minutes: float | None,
    journal: str | os.PathLike[str] | None,
    progress: bool | None,
    details: Mapping[str, Any],
) -> TunedRelease:
    """Tune, compile and publish; see `Fleet.publish_tuned`, whose method `publish` is given."""
    missing = sorted(set(budgets) - set(targets))
    if missing or not budgets:
        raise OptionsError(
            "A class of devices has no target." if missing else "There is no class of devices.",
            where="publish_tuned, targets" if missing else "publish_tuned, budgets",
            found=", ".join(missing) or "nothing",
            hint='Give one for each class of budgets, such as {"line camera": "openvino:CPU"}.',
        )
    model = Model.load(source)
    folder = None if journal is None else Path(journal)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with fork_server(scratch_folder()):  # one for all classes
        results = {
            device_class: tune(
                model,
                budget,
                target=targets[device_class],
                calibration=calibration,
                evaluate=evaluate,
                minutes=minutes,
                journal=None if folder is None else folder / f"{device_class}.jsonl",
                on=on.get(device_class),
                options=options,
                progress=progress,
            )
            for device_class, budget in budgets.items()
        }
    artifacts = {device_class: _artifact(result) for device_class, result in results.items()}
    needs = {
        device_class: attrs.evolve(needs_of(artifact), device_class=(device_class,))
        for device_class, artifact in artifacts.items()
    }
    release = publish(
        name, artifacts, budget=dict(budgets), needs=needs, **{"golden": calibration, **details}
    )
    return TunedRelease(release=release, results=results)


def _artifact(result: TuningResult) -> Artifact:
    """Compile the best candidate, with the figures that were measured.

    Raises:
        BudgetError: There is none.
    """
    best = result.best
    cost = Cost(
        latency_p50_ms=best.latency_p50_ms,
        latency_p99_ms=best.latency_p99_ms,
        peak_bytes=best.peak_bytes,
        disk_bytes=best.disk_bytes,
        measured_on=result.where,
    )
    return compile_model(best.model).with_cost(cost)


def _beside(found: float | None, limit: float | None) -> str:
    return f"{'?' if found is None else f'{found:.3g}'} / {'none' if limit is None else f'{limit:.3g}'}"
