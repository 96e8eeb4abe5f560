"""Images of brushed metal with and without defects, drawn from a seed: what the inspection model looks at.

Each image is drawn from the seed and its own number alone, so that it is the same wherever and in whatever
order it is drawn.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import final

import attrs
import numpy as np

__all__ = ["CLASSES", "SIZE", "Surfaces", "draw_surfaces", "inspection_model_path"]

CLASSES = ("clean", "scratch", "dent", "stain")
SIZE = 64  # pixels, both ways


@final
@attrs.frozen(kw_only=True, eq=False)
class Surfaces:
    """Images as the model takes them, and what is on them.

    Attributes:
        images: float32 (N, 1, 64, 64), 0 to 1.
        labels: int64 (N,), places in `CLASSES`.
    """

    images: np.ndarray = attrs.field(repr=False)
    labels: np.ndarray = attrs.field(repr=False)

    def accuracy(self, logits: np.ndarray) -> float:
        """Return the share of images that `logits` (N, 4) put into the right class."""
        return float((logits.argmax(1) == self.labels).mean())

    def feeds(self, batch: int = 1) -> list[dict[str, np.ndarray]]:
        """Return the images as feeds of `batch` images."""
        starts = range(0, len(self.images), batch)
        return [{"image": self.images[start : start + batch]} for start in starts]


def inspection_model_path() -> Path:
    """Return the path of `inspection.onnx`: from `image` float32 (N, 1, 64, 64) to `logits` (N, 4)."""
    return Path(str(files("edgeinfer.demo") / "inspection.onnx"))


def draw_surfaces(count: int, *, seed: int, first: int = 0) -> Surfaces:
    """Draw images; the classes take turns.

    Args:
        count: How many.
        seed: Of the set. Training, calibration and evaluation have different ones.
        first: The number of the first image.
    """
    numbers = range(first, first + count)
    labels = np.array([number % len(CLASSES) for number in numbers], np.int64)
    images = [
        _draw(label, np.random.default_rng((seed, n))) for label, n in zip(labels, numbers, strict=True)
    ]
    stacked = np.stack(images) if images else np.zeros((0, SIZE, SIZE))
    return Surfaces(images=stacked[:, None].astype(np.float32), labels=labels)


def _draw(label: int, rng: np.random.Generator) -> np.ndarray:
    image = _metal(rng)
    if label == 1:
        image += _scratch(rng)
    elif label == 2:
        image += _dent(rng)
    elif label == 3:
        image += _stain(rng)
    image += 0.04 * rng.standard_normal((SIZE, SIZE))  # the camera's noise
    clipped: np.ndarray = np.clip(image, 0, 1)
    return clipped


def _metal(rng: np.random.Generator) -> np.ndarray:
    """Brushed metal under a lamp: streaks along the rows, and light that falls off to one side."""
    streaks = rng.standard_normal((SIZE, SIZE + 31))
    streaks = np.stack([streaks[:, shift : shift + SIZE] for shift in range(32)]).mean(0)
    streaks = streaks + 0.25 * rng.standard_normal((SIZE, 1))
    y, x = _grid()
    angle = rng.uniform(0, 2 * np.pi)
    light = np.cos(angle) * x + np.sin(angle) * y
    image: np.ndarray = rng.uniform(0.4, 0.6) + 0.12 * streaks + rng.uniform(0.02, 0.15) * light
    return image


def _scratch(rng: np.random.Generator) -> np.ndarray:
    """A thin line, brighter or darker than the metal."""
    y, x = _grid()
    angle = rng.uniform(0, np.pi)
    at_y, at_x = rng.uniform(-0.6, 0.6, 2)
    along = np.cos(angle) * (x - at_x) + np.sin(angle) * (y - at_y)
    across = -np.sin(angle) * (x - at_x) + np.cos(angle) * (y - at_y) + rng.uniform(-0.3, 0.3) * along**2
    width, length = rng.uniform(0.02, 0.04), rng.uniform(0.25, 0.8)
    line = np.exp(-((across / width) ** 2)) * (np.abs(along) < length)
    drawn: np.ndarray = _sign(rng) * rng.uniform(0.03, 0.2) * line
    return drawn


def _dent(rng: np.random.Generator) -> np.ndarray:
    """A hollow: light on one flank, shadow on the other."""
    y, x = _grid()
    at_y, at_x = rng.uniform(-0.6, 0.6, 2)
    radius, stretch = rng.uniform(0.12, 0.35), rng.uniform(0.6, 1.6)
    dy, dx = (y - at_y) / radius, (x - at_x) / (radius * stretch)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(angle) * dx + np.sin(angle) * dy) * np.exp(-(dx**2 + dy**2))
    drawn: np.ndarray = rng.uniform(0.03, 0.3) * slope
    return drawn


def _stain(rng: np.random.Generator) -> np.ndarray:
    """A blot of irregular outline, darker than the metal."""
    y, x = _grid()
    at_y, at_x = rng.uniform(-0.6, 0.6, 2)
    angle = np.arctan2(y - at_y, x - at_x)
    waves = sum(rng.uniform(0, 0.25) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    distance = np.hypot(y - at_y, x - at_x)
    inside = 1 / (1 + np.exp(30 * (distance - rng.uniform(0.15, 0.4) * (1 + waves))))
    drawn: np.ndarray = -rng.uniform(0.015, 0.12) * inside
    return drawn


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the pixels, from -1 to 1."""
    axis = np.linspace(-1, 1, SIZE)
    return axis[:, None], axis[None, :]


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0
