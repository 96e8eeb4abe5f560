"""Timing candidates on a device that is reached over ssh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import attrs
import numpy as np

from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError, RemoteConnectionError, RemoteTimeoutError
from edgeinfer.graph.build import compile_model
from edgeinfer.model.model import Model
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.inputs import in_batches
from edgeinfer.tuning.turns import percentile, thinned

if TYPE_CHECKING:
    from edgeinfer.artifact.artifact import Artifact
    from edgeinfer.devices.remote.device import RemoteDevice

__all__ = ["RemoteBench"]

_TURNS = 2  # each is a connection and a process on the device
_WARM_UP = 5


@final
@attrs.define(eq=False, kw_only=True)
class RemoteBench:
    """Times candidates on a device, in turns; the clock is the device's on the wall.

    Args:
        device: The device.
        folder: Where the models are.
        target: What to compile for.
        feed: What to run.
    """

    device: RemoteDevice
    folder: Path
    target: Target
    feed: Mapping[str, np.ndarray]

    def time(self, trials: Sequence[tuple[int, Candidate]], runs: int) -> dict[int, dict[str, Any]]:
        """Return the fields of a `Timing` for each candidate."""
        artifacts: dict[int, Artifact] = {}
        wall: dict[int, list[float]] = {}
        failed: dict[int, dict[str, Any]] = {}
        for turn in range(_TURNS):
            for index, candidate in trials if turn % 2 == 0 else reversed(trials):
                if index in failed:
                    continue
                try:
                    if index not in artifacts:
                        artifacts[index] = self._compiled(candidate)
                    report = self.device.benchmark(
                        artifacts[index],
                        in_batches([self.feed], candidate.batch),
                        warmup=_WARM_UP,
                        runs=max(1, runs // _TURNS),
                    )
                except (RemoteConnectionError, RemoteTimeoutError) as error:
                    failed[index] = {"outcome": "hung", "reason": " ".join(str(error).split())}
                except EdgeInferError as error:
                    failed[index] = {"outcome": "failed", "reason": " ".join(str(error).split())}
                else:
                    wall.setdefault(index, []).extend(map(float, report.latencies_ms))
        for index, latencies in wall.items():
            failed.setdefault(
                index,
                {
                    "outcome": "ok",
                    "n": len(latencies),
                    "wall_p50_ms": percentile(latencies, 50),
                    "wall_p99_ms": percentile(latencies, 99),
                    "disk_bytes": artifacts[index].disk_bytes,
                    "latencies_ms": thinned(latencies),
                },
            )
        return failed

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _compiled(self, candidate: Candidate) -> Artifact:
        model = Model.load(self.folder / f"{candidate.model_key}.onnx")
        return compile_model(model, self.target, options=candidate.run_options or None)
