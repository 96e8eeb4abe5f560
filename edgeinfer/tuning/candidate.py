"""`Candidate`: one way to make a model smaller and to run it, as decisions that can be written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, final

import attrs

from edgeinfer.values import as_tuple

__all__ = ["EFFORTS", "PRECISIONS", "Candidate"]

# `dynamic`: int8 with ranges taken on each run; `weights8`: weights stored in 8 bits, computed in float.
PRECISIONS = ("float32", "float16", "int8", "dynamic", "weights8")
# How much is done for the closeness of an int8 model: nothing beside ranges; weights rounded again and biases
# corrected; all methods tried against each other (`QuantizeInt8`).
EFFORTS = ("plain", "corrected", "searched")


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(options.items()))


@final
@attrs.frozen(kw_only=True, slots=False)
class Candidate:
    """What is done to a model, and how it is run.

    Attributes:
        prune: What is pruned: `channels`, `heads`, or empty for nothing.
        keep: The part of it that is kept: of the multiply-accumulates for channels, of the heads.
        precision: One of `PRECISIONS`.
        method: How the ranges of int8 are found; see `QuantizeStatic`.
        effort: One of `EFFORTS`, for int8.
        keep_float: Names of layers that stay in float where the others are int8.
        options: The backend's options that do not change what is computed.
        narrow: The backend's options that do: with them it computes in a narrower type what the graph says
            in float32.
        fixed: Whether the shapes of the inputs are fixed to those of the feeds.
        batch: Rows of an inference; None: as many as the feeds have.
    """

    prune: str = attrs.field(default="", validator=attrs.validators.in_(("", "channels", "heads")))
    keep: float = attrs.field(default=1.0, validator=[attrs.validators.gt(0), attrs.validators.le(1)])
    precision: str = attrs.field(default="float32", validator=attrs.validators.in_(PRECISIONS))
    method: str = ""
    effort: str = attrs.field(default="", validator=attrs.validators.in_(("", *EFFORTS)))
    keep_float: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    options: Mapping[str, Any] = attrs.field(factory=dict, converter=_plain)
    narrow: Mapping[str, Any] = attrs.field(factory=dict, converter=_plain)
    fixed: bool = False
    batch: int | None = None

    @property
    def run_options(self) -> dict[str, Any]:
        """All options of the backend that it is run with."""
        return {**self.options, **self.narrow}

    @cached_property
    def model_key(self) -> str:
        """A short name of what it computes, however fast it is run: 16 hexadecimal digits."""
        decisions = self.to_dict()
        for how in ("options", "batch"):
            decisions.pop(how, None)
        text = json.dumps(decisions, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return its decisions as JSON-compatible values."""
        found: dict[str, Any] = {
            "prune": self.prune,
            "keep": self.keep if self.prune else None,
            "precision": self.precision,
            "method": self.method,
            "effort": self.effort,
            "keep_float": list(self.keep_float),
            "options": dict(self.options),
            "narrow": dict(self.narrow),
            "fixed": self.fixed,
            "batch": self.batch,
        }
        return {name: value for name, value in found.items() if value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Candidate:
        """Read what `to_dict` wrote."""
        return cls(**values)

    def describe(self) -> str:
        """Return one line for people."""
        parts = [f"{self.keep:.0%} of the {'MACs' if self.prune == 'channels' else 'heads'}"] * bool(
            self.prune
        )
        precision = ", ".join(filter(None, (self.precision, self.method, self.effort)))
        parts.append(precision)
        count = len(self.keep_float)
        parts += [f"{count} layer{'s' if count > 1 else ''} in float"] * bool(count)
        parts += [f"{name}={value}" for name, value in self.run_options.items()]
        parts += ["fixed shapes"] * self.fixed
        parts += [f"batch {self.batch}"] * (self.batch is not None)
        return "; ".join(parts)
