"""`MissionReport`: what happened in the mission, as a table and as a page with pictures."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.atomic import write_file
from edgeinfer.demo.surfaces import CLASSES, draw_surfaces
from edgeinfer.display import Table
from edgeinfer.fleet.operator.status import RolloutStatus
from edgeinfer.fleet.operator.tuned import TunedRelease
from edgeinfer.svg import beside
from edgeinfer.values import as_tuple

__all__ = ["MissionReport"]

_SHOWN = 32  # the seed of images on which an eye sees the defects, too
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>edgeinfer: the mission</title>
<style>
:root { color-scheme: light dark }
body { font: 14px/1.45 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1.5em }
table { font-size: 13px }
figure { display: inline-block; margin: 0 1.5em 0 0 }
img { width: 160px; image-rendering: pixelated; display: block }
</style></head><body><h1>From a model to a fleet, and back from a bad release</h1>
<p>A model that finds defects on images of metal was tuned to two classes of devices, published as one signed
release, and rolled out to agents on this machine. Then came a second release, too slow for one class. All of
it ran just now.</p>
"""


@final
@attrs.frozen(kw_only=True)
class MissionReport:
    """What happened.

    Attributes:
        tuned: The first release, and how its variants were found.
        good: The rollout of the first release, at its end.
        bad: The rollout of the second one, at its end.
        devices: One row a device, at the end.
        running: How many devices run the first release at the end.
        seconds: How long it took, by part.
        pictures: What each device did in the first and in the second rollout, as SVG.
        notes: What must be said.
    """

    tuned: TunedRelease
    good: RolloutStatus
    bad: RolloutStatus
    devices: Table
    running: int
    seconds: Mapping[str, float]
    pictures: tuple[str, str]
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-compatible values."""
        return {
            "tuned": self.tuned.to_dict(),
            "good": self.good.state,
            "bad": self.bad.state,
            "running": self.running,
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """Return one row a part."""
        rows = [
            ("tuned and published", f"release 1 for {len(self.tuned.results)} classes of devices"),
            ("rolled out", f"release 1: {self.good.state}"),
            ("a bad release", f"release 2, too slow for the cameras: {self.bad.state}"),
            ("at the end", f"{self.running} devices run release 1"),
            *((part, f"{seconds:.0f} s") for part, seconds in self.seconds.items()),
            ("all of it", f"{sum(self.seconds.values()):.0f} s"),
        ]
        return Table(title="The mission", columns=("", ""), rows=rows, footer="\n".join(self.notes))

    def __str__(self) -> str:
        return "\n\n".join(map(str, (self.tuned, self.good, self.bad, self.devices, self.table())))

    def _repr_html_(self) -> str:
        parts = [
            self.table().to_html(),
            "<h2>What is inspected</h2>",
            _images(),
            self.tuned.table().to_html(),
        ]
        good, bad = self.pictures
        parts.append(f"<h2>Release 1 is rolled out</h2>{beside(good)}{self.good._repr_html_()}")
        parts.append(f"<h2>Release 2 is caught at the canaries</h2>{beside(bad)}{self.bad._repr_html_()}")
        parts.append(f"<h2>The fleet at the end</h2>{self.devices.to_html()}")
        for name, result in self.tuned.results.items():
            parts.append(f"<h2>How the class {name} was tuned</h2>{result._repr_html_()}")
        return "\n".join(parts)

    def save_html(self, path: str | Path) -> Path:
        """Write it as one page that needs no other file and no network."""
        write_file(Path(path), f"{_HEAD}{self._repr_html_()}\n</body></html>\n".encode())
        return Path(path)


def _images() -> str:
    """Return one image of each class."""
    surfaces = draw_surfaces(len(CLASSES), seed=_SHOWN)
    figures = [
        f"<figure><img alt='{name}' src='data:image/png;base64,{_png(image[0])}'>"
        f"<figcaption>{name}</figcaption></figure>"
        for name, image in zip(CLASSES, surfaces.images, strict=True)
    ]
    return f"<p>{''.join(figures)}</p>"


def _png(image: np.ndarray) -> str:
    """Return a grey image (H, W), 0 to 1, as PNG (ISO/IEC 15948) in base64."""
    height, width = image.shape
    rows = np.zeros((height, width + 1), np.uint8)  # before each row the number of its filter: none
    rows[:, 1:] = np.rint(255 * image)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()
