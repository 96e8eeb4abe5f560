"""The data and the model that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import final

import attrs
import numpy as np

__all__ = ["Digits", "load_digits", "model_path"]


@final
@attrs.frozen(kw_only=True, eq=False)
class Digits:
    """Handwritten digits as the model takes them: float32 (N, 1, 8, 8), 0 to 1.

    Attributes:
        images: 449 images that the model was not trained on.
        labels: Their classes, int64 (N,), 0 to 9.
        calibration: 100 images from the training set.
    """

    images: np.ndarray = attrs.field(repr=False)
    labels: np.ndarray = attrs.field(repr=False)
    calibration: np.ndarray = attrs.field(repr=False)

    def calibration_feeds(self) -> list[dict[str, np.ndarray]]:
        """Return the calibration images as feeds of 10."""
        return [{"images": self.calibration[start : start + 10]} for start in range(0, 100, 10)]

    def accuracy(self, logits: np.ndarray) -> float:
        """Return the share of held-out images that `logits` (N, 10) put into the right class."""
        return float((logits.argmax(1) == self.labels).mean())


def model_path() -> Path:
    """Return the path of `digits.onnx`."""
    return Path(str(files("edgeinfer.demo") / "digits.onnx"))


def load_digits() -> Digits:
    """Read the images and labels."""
    with np.load(Path(str(files("edgeinfer.demo") / "digits.npz")), allow_pickle=False) as archive:
        return Digits(
            images=_normalized(archive["images"]),
            labels=archive["labels"].astype(np.int64),
            calibration=_normalized(archive["calibration"]),
        )


def _normalized(images: np.ndarray) -> np.ndarray:
    """Turn uint8 (N, 8, 8) with pixels 0 to 16 into what the model takes."""
    return (images[:, None] / 16).astype(np.float32)
