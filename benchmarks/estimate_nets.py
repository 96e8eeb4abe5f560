"""The nets of `benchmarks/estimates.py`: synthetic ones, real ones, and real ones pruned; each measured once.

Measurements are appended to a file, one line a net, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError
from edgeinfer.estimate.samples import PRECISIONS, Sample, forms, measure
from edgeinfer.estimate.synthetic import calibration_net
from edgeinfer.model.model import Model
from edgeinfer.transforms import FixShapes, FuseBatchNorm, PruneChannels, PruneHeads, Simplify

# Models of the shared data and the sizes of their symbolic dimensions.
REAL = {
    "mobilenet_v2_1.0_224": {"input": (1, 3, 224, 224)},
    "squeezenet1_1": {"input": (1, 3, 224, 224)},
    "cifar10_resnet20": {"input": (1, 3, 32, 32)},
    "cifar10_resnet8_mlperf": {"input": (1, 3, 32, 32)},
    "vww_mobilenetv1_025_96": {"input": (1, 3, 96, 96)},
    "kws_dscnn": {"input": (1, 1, 49, 10)},
    "mnist_cntk": {"Input3": (1, 1, 28, 28)},
    "nanodet_m_320": {"input": (1, 3, 320, 320)},
    "silero_vad_16k": {"input": (1, 576), "state": (2, 1, 128)},
    "espcn_x3": {"input": (1, 1, 85, 85)},
    "minilm_l6_fp16w": {"input_ids": (1, 32), "attention_mask": (1, 32)},
}
KEEP = (0.85, 0.7, 0.5)
NOT_PRUNED = ("silero_vad_16k", "mnist_cntk")


class Nets:
    """Measures nets, and remembers what it measured.

    Args:
        file: Where the measurements are kept.
        models: The folder of the real models.
        targets: What to measure on.
    """

    def __init__(self, file: Path, models: Path, targets: tuple[Target, ...]) -> None:
        self._file, self._models, self._targets = file, models, targets
        self.samples: dict[str, list[Sample]] = {}
        if file.exists():
            for line in file.read_text().splitlines():
                sample = Sample.from_dict(json.loads(line))
                self.samples.setdefault(sample.net, []).append(sample)

    def synthetic(self, count: int) -> list[Sample]:
        return [
            sample
            for number in range(count)
            for sample in self._measured(
                f"synthetic-{number}",
                lambda n=number: calibration_net(n),
                {},
                with_memory=number % 4 == 0,
                gains_only=False,
            )
        ]

    def real(self) -> list[Sample]:
        return [
            sample
            for name, shapes in self._present()
            for sample in self._measured(
                name, lambda n=name: Model.load(self._models / f"{n}.onnx"), shapes, with_memory=True
            )
        ]

    def pruned(self) -> list[Sample]:
        """Pruned by magnitude, without refitting: only the shapes count here. `NAME@1` is the model itself.

        The variants of a model are measured in turns, so that the machine's load is the same for all.
        """
        found = []
        for name, shapes in self._present():
            if name in NOT_PRUNED:
                continue
            if f"{name}@1" not in self.samples:
                models = {
                    (target, f"{precision}@{keep:g}"): model
                    for keep in (1, *KEEP)
                    for (target, precision), model in forms(
                        self._prune(name, keep), self._targets, PRECISIONS, shapes=shapes
                    ).items()
                }
                for sample in measure(name, models, shapes=shapes, seconds=3.0):
                    precision, _, keep = sample.precision.partition("@")
                    self._remember(attrs.evolve(sample, net=f"{name}@{keep}", precision=precision))
            found += [sample for keep in (1, *KEEP) for sample in self.samples.get(f"{name}@{keep:g}", [])]
        return found

    def _prune(self, name: str, keep: float) -> Model:
        model = Model.load(self._models / f"{name}.onnx")
        steps = (FixShapes(REAL[name]), Simplify(widen_weights=True), FuseBatchNorm())
        for step in steps:
            model = step.apply(model).model
        if keep == 1:
            return model
        prune = PruneHeads(keep=keep) if name.startswith("minilm") else PruneChannels(keep_macs=keep)
        return prune.apply(model).model

    def _present(self) -> Iterator[tuple[str, dict]]:
        for name, shapes in REAL.items():
            if (self._models / f"{name}.onnx").exists():
                yield name, shapes

    def _keep(self, name: str, models: dict) -> None:
        if os.environ.get("KEEP_MODELS"):  # to count their kernels anew without measuring them again
            for (target, precision), model in models.items():
                model.save(Path(os.environ["KEEP_MODELS"]) / f"{name}-{target}-{precision}.onnx")

    def _measured(
        self,
        name: str,
        make: Callable[[], Model],
        shapes: dict,
        *,
        with_memory: bool = False,
        gains_only: bool = True,
    ) -> list[Sample]:
        if name not in self.samples:
            try:
                models = forms(make(), self._targets, PRECISIONS, shapes=shapes, gains_only=gains_only)
                self._keep(name, models)
                for sample in measure(name, models, shapes=shapes, with_memory=with_memory):
                    self._remember(sample)
            except EdgeInferError as error:
                print(f"{name} is left out: {error.what}", flush=True)
                self.samples[name] = []
        return self.samples[name]

    def _remember(self, sample: Sample) -> None:
        self.samples.setdefault(sample.net, []).append(sample)
        with self._file.open("a") as file:
            file.write(json.dumps(sample.to_dict()) + "\n")
        print(f"{sample.net}: {sample.target} {sample.precision} {sample.ratio:.3f} probes", flush=True)
