"""`Preprocessing`: how an image becomes an input. A plain value, so that it can travel with a model.

    y = (pixel * scale - mean) / std

for each channel, with pixels from 0 to 255, after the image was brought to its size by Pillow.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.artifact.signature import dtype_of
from edgeinfer.errors import FeedsError

__all__ = ["Preprocessing", "pillow"]

MODES = ("resize", "crop", "letterbox")
COLORS = ("RGB", "BGR", "L")
LAYOUTS = ("NCHW", "NHWC")
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
# What Pillow converts to 8 bits a channel without loss of meaning.
_MODES_OF_PILLOW = frozenset(
    {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa"}
)


def pillow() -> Any:
    """Return `PIL.Image`.

    Raises:
        FeedsError: Pillow is not installed.
    """
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise FeedsError(
            "Images need Pillow, which is not installed.",
            found=str(error),
            hint='pip install "edgeinfer[images]" (the package is pillow)',
        ) from error


def _size(value: Any) -> Any:
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _check_size(_: object, __: object, value: Any) -> None:
    fits = isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
    if not fits:
        raise FeedsError(
            "That is not the size of an image.", expected="(height, width), in pixels", found=value
        )


def _one_of(allowed: tuple[str, ...]) -> Any:
    def check(_: object, attribute: Any, value: object) -> None:
        if value not in allowed:
            raise FeedsError(
                f"Preprocessing has no {attribute.name} {value!r}.", expected=", ".join(allowed), found=value
            )

    return check


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, float) or not math.isfinite(value):
        raise FeedsError("Preprocessing takes finite numbers.", where=name, found=value)


def _channels(values: Any) -> Any:
    several = isinstance(values, Iterable) and not isinstance(values, str)
    return tuple(_plain(value) for value in (values if several else (values,)))


def _plain(value: Any) -> Any:
    """Return a number as Python's own, so that it can be written as JSON; anything else as it is."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return float(value) if number else value


def _check_dtype(_: object, __: object, value: object) -> None:
    try:
        known = isinstance(value, str) and dtype_of(value).kind in "fiu"
    except TypeError:
        known = False
    if not known:
        raise FeedsError(
            "That is not a dtype of images.", where="dtype", expected="such as float32 or uint8", found=value
        )


@final
@attrs.frozen(kw_only=True)
class Preprocessing:
    """How an image becomes an input of a model.

    Attributes:
        size: Height and width of the input, in pixels; one number for a square.
        mode: `resize` stretches the image to the size. `crop` scales it so that its shorter side is
            `shorter`, and takes the middle. `letterbox` scales it to fit inside, and fills the rest.
        shorter: For `crop`: the shorter side before the crop; None for the longer side of `size`.
        fill: For `letterbox`: the value of the pixels around, 0 to 255.
        color: `RGB`, `BGR` or `L` (grey).
        layout: `NCHW` or `NHWC`.
        dtype: The dtype of the input. An integer dtype takes pixels as they are.
        scale: What pixels are multiplied by.
        mean: What is subtracted then, one number or one a channel, in the order of `color`.
        std: What is divided by then, in the same order.
        resample: Pillow's filter: `nearest`, `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`.
    """

    size: tuple[int, int] = attrs.field(converter=_size, validator=_check_size)
    mode: str = attrs.field(default="resize", validator=_one_of(MODES))
    shorter: int | None = attrs.field(default=None)
    fill: int = attrs.field(default=114)
    color: str = attrs.field(default="RGB", validator=_one_of(COLORS))
    layout: str = attrs.field(default="NCHW", validator=_one_of(LAYOUTS))
    dtype: str = attrs.field(default="float32", validator=_check_dtype)
    scale: float = attrs.field(default=1 / 255, converter=_plain)
    mean: tuple[float, ...] = attrs.field(default=(0.0,), converter=_channels)
    std: tuple[float, ...] = attrs.field(default=(1.0,), converter=_channels)
    resample: str = attrs.field(default="bilinear", validator=_one_of(FILTERS))

    def __attrs_post_init__(self) -> None:
        if self.shorter is not None and (
            type(self.shorter) is not int or self.mode != "crop" or self.shorter < max(self.size)
        ):
            raise FeedsError(
                "`shorter` is the shorter side before a crop, in pixels.",
                expected=f"None, or at least {max(self.size)} with mode='crop'",
                found=f"{self.shorter!r} with mode={self.mode!r}",
            )
        if type(self.fill) is not int or not 0 <= self.fill <= 255:
            raise FeedsError("`fill` is the value of a pixel.", expected="0 to 255", found=self.fill)
        _check_number("scale", self.scale)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise FeedsError(
                    f"`{name}` does not fit the channels.",
                    expected=f"1 or {self.channels} numbers",
                    found=len(values),
                )
            for value in values:
                _check_number(name, value)
        if 0 in self.std:
            raise FeedsError("`std` is divided by.", expected="not 0", found=self.std)
        plain = (self.scale, set(self.mean), set(self.std)) == (1, {0}, {1})
        if dtype_of(self.dtype).kind != "f" and not plain:
            raise FeedsError(
                "An integer input takes pixels as they are.",
                expected=f"scale=1, mean=0, std=1 with dtype={self.dtype!r}",
                found=f"scale={self.scale}, mean={self.mean}, std={self.std}",
            )

    @property
    def channels(self) -> int:
        """How many channels the input has."""
        return 1 if self.color == "L" else 3

    def apply(self, image: Any) -> np.ndarray:
        """Return the input that an image becomes, with a batch axis of 1.

        Args:
            image: A `PIL.Image.Image`, or uint8 `(H, W)`, `(H, W, 3)` in RGB, or `(H, W, 4)` in RGBA.

        Returns:
            `(1, channels, height, width)` or `(1, height, width, channels)`, of `dtype`.

        Raises:
            FeedsError: It is no such image, its values are too large for `dtype`, or Pillow is not installed.
        """
        pixels = np.asarray(self._sized(_as_image(image)))
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        dtype = dtype_of(self.dtype)
        if dtype.kind == "f":
            mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
            pixels = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        if self.layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        with np.errstate(over="ignore"):
            found = np.ascontiguousarray(pixels[None].astype(dtype))
        if dtype.kind == "f" and not np.isfinite(found).all():
            raise FeedsError(
                f"The values of an image are too large for {self.dtype}.",
                expected=f"at most {np.finfo(dtype).max:g}",
                found=f"{np.abs(pixels).max():g}",
                hint="Check scale, mean and std; they are for pixels from 0 to 255.",
            )
        return found

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON-compatible values, from which `from_dict` makes it again."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in attrs.asdict(self, recurse=False).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Make it from what `to_dict` returned.

        Raises:
            FeedsError: A field is unknown, missing, or has a value that it does not take.
        """
        names = [field.name for field in attrs.fields(cls)]
        if not isinstance(fields, Mapping) or "size" not in fields or not set(fields) <= set(names):
            found = sorted(map(str, fields)) if isinstance(fields, Mapping) else type(fields).__name__
            raise FeedsError(
                "Those are not the fields of a Preprocessing.",
                expected=f"size, and any of {', '.join(names[1:])}",
                found=found,
            )
        return cls(**fields)

    def _sized(self, image: Any) -> Any:
        image = image.convert("L" if self.color == "L" else "RGB")
        height, width = self.size
        resample = getattr(pillow().Resampling, self.resample.upper())
        if self.mode == "resize":
            return image.resize((width, height), resample)
        if self.mode == "crop":
            image = _with_shorter_side(image, self.shorter or max(self.size), resample)
            # As torchvision's CenterCrop has it.
            left, top = round((image.width - width) / 2), round((image.height - height) / 2)
            return image.crop((left, top, left + width, top + height))
        ratio = min(width / image.width, height / image.height)
        inner = image.resize(
            (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), resample
        )
        outer = pillow().new(inner.mode, (width, height), (self.fill,) * self.channels)
        outer.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
        return outer


def _with_shorter_side(image: Any, side: int, resample: int) -> Any:
    """Scale an image so that its shorter side has `side` pixels, as torchvision's Resize does."""
    shorter = min(image.size)
    if shorter == side:
        return image
    return image.resize([side if n == shorter else int(side * n / shorter) for n in image.size], resample)


def _as_image(image: Any) -> Any:
    library = pillow()
    if isinstance(image, np.ndarray):
        shaped = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
        if image.dtype != np.uint8 or not shaped or not image.size:
            raise FeedsError(
                "That array is not an image.",
                expected="uint8 (H, W), (H, W, 3) or (H, W, 4)",
                found=f"{image.dtype} {image.shape}",
            )
        return library.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, library.Image):
        raise FeedsError("That is not an image.", expected="a PIL image", found=type(image).__name__)
    if image.mode not in _MODES_OF_PILLOW:
        raise FeedsError(
            "The image has more than 8 bits a channel, which Pillow would clip.",
            expected="8 bits a channel",
            found=f"mode {image.mode}",
        )
    return image
