"""Arguments that several commands take: feeds, shapes, numbers, and where to write."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeinfer.errors import OptionsError
from edgeinfer.plain_json import parse_json

if TYPE_CHECKING:
    from edgeinfer.artifact.signature import Signature
    from edgeinfer.feeds.feeds import Feeds
    from edgeinfer.feeds.preprocessing import Preprocessing
    from edgeinfer.feeds.shapes import Shapes

__all__ = [
    "add_feeds",
    "add_shapes",
    "feeds_of",
    "new_file",
    "new_path",
    "number",
    "shape_values",
    "whole_number",
]


def add_feeds(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    """Add `--feeds` or `--calibration`, and `--images` with `--preprocessing`."""
    parser.add_argument(
        name, dest="feeds", metavar="PATH", help=f"{what}: an .npz or .npy file, or a folder of them"
    )
    parser.add_argument("--images", metavar="PATH", help=f"{what}: an image, or a folder of images")
    parser.add_argument(
        "--preprocessing",
        metavar="FILE",
        help="how an image becomes an input: a JSON file of the fields of Preprocessing, such as "
        '{"size": [224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}',
    )


def feeds_of(arguments: argparse.Namespace, signature: Signature) -> Feeds | None:
    """Return the feeds that the arguments name, or None.

    Raises:
        OptionsError: The arguments do not go together, or the preprocessing cannot be read.
        FeedsError: There is nothing to read.
    """
    from edgeinfer.feeds.feeds import Feeds

    if arguments.feeds and arguments.images:
        raise OptionsError("Arrays or images, not both.", found=f"{arguments.feeds}, {arguments.images}")
    if bool(arguments.images) != bool(arguments.preprocessing):
        raise OptionsError(
            "Images and their preprocessing belong together.",
            expected="--images PATH --preprocessing FILE",
            found="--images alone" if arguments.images else "--preprocessing alone",
        )
    if arguments.images:
        return Feeds.of(arguments.images, signature, _preprocessing(Path(arguments.preprocessing)))
    return Feeds.of(arguments.feeds, signature) if arguments.feeds else None


def _preprocessing(path: Path) -> Preprocessing:
    from edgeinfer.feeds.preprocessing import Preprocessing

    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionsError(
            "The preprocessing cannot be read.",
            where=str(path),
            expected="a JSON object with the fields of Preprocessing",
            found=str(error),
        ) from error
    return Preprocessing.from_dict(fields)


def add_shapes(parser: argparse.ArgumentParser, *, batch: bool = True) -> None:
    """Add `--shape` and `--batch`."""
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        type=_shape,
        metavar="NAME=SIZE",
        help="the size of a symbolic dimension (N=8) or the shape of an input (input=8x3x224x224); "
        "may be repeated",
    )
    if batch:
        parser.add_argument(
            "--batch", type=whole_number(1), metavar="N", help="the size of the batch (default: 1)"
        )


def shape_values(arguments: argparse.Namespace) -> Shapes | None:
    """Return what `--shape` gave."""
    return dict(arguments.shape) or None


def new_file(text: str) -> str:
    """Check for argparse that a file can be written there: before the work whose result it is to hold."""
    path = Path(text)
    if path.is_dir():
        raise OptionsError("The file cannot be written: it is a directory.", where=text)
    is_device = path.exists() and not path.is_file()
    return text if is_device else new_path(text)


def new_path(text: str) -> str:
    """The same for a file or a folder."""
    folder = Path(text).absolute().parent
    if not folder.is_dir():
        raise OptionsError(
            "It cannot be written: there is no such folder.", where=text, expected=f"the folder {folder}"
        )
    if not os.access(folder, os.W_OK):
        raise OptionsError("It cannot be written: its folder is not writable.", where=text)
    return text


def whole_number(least: int) -> Callable[[str], int]:
    """Return a type for argparse: an integer of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return value

    return parse


def number(*, above: float = -math.inf) -> Callable[[str], float]:
    """Return a type for argparse: a finite number above `above`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > above):
            limit = f" above {above:g}" if math.isfinite(above) else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number{limit}")
        return value

    return parse


def _shape(text: str) -> tuple[str, Any]:
    name, equals, value = text.rpartition("=")
    try:
        sizes = tuple(int(size) for size in value.replace(",", "x").split("x"))
    except ValueError:
        sizes = ()
    if not equals or not name or not sizes or min(sizes) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SIZE or NAME=AxBxC")
    return name, sizes[0] if len(sizes) == 1 else sizes
