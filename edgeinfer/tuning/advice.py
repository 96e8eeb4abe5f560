"""When nothing fits: which limit, how near it came, and what would help, each with an estimate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import final

import attrs

from edgeinfer.budget import Budget, Violation
from edgeinfer.estimate.selection import Fit, select
from edgeinfer.model.model import Model

__all__ = ["Advice", "Nearest", "advise", "devices_that_fit"]

_DEVICES = 3
_LATENCY = ("latency_p50_ms", "latency_p99_ms")
_LEAST_PIXELS = 32  # a side of what is an image
_SMALLEST_SIDE = 0.25  # below a quarter of the side no image model is left


@final
@attrs.frozen(kw_only=True)
class Advice:
    """One limit that cannot be kept, or one thing that would help.

    Attributes:
        limit: Which limit, and how near the nearest candidate came; empty for what would help.
        what: What would help; empty for a limit.
        estimate: The figure that is expected then, in the limit's unit; None where there is no estimate.
        basis: How the estimate was come by: `measured`, `scaled` or `catalog`.
    """

    limit: str = ""
    what: str = ""
    estimate: float | None = None
    basis: str = ""

    def describe(self) -> str:
        """Return one line for people."""
        if self.limit:
            return f"limit: {self.limit}"
        return f"would help: {self.what}" + (f" (basis: {self.basis})" if self.basis else "")

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON-compatible values."""
        return attrs.asdict(self)


@final
@attrs.frozen(kw_only=True)
class Nearest:
    """The candidate that came nearest, in the words that advice needs.

    Attributes:
        described: The candidate, for people.
        violations: The limits that it breaks.
    """

    described: str
    violations: tuple[Violation, ...]


def advise(
    nearest: Nearest,
    *,
    shapes: Mapping[str, Sequence[int]],
    open_sides: bool,
    devices: Sequence[Advice],
) -> tuple[Advice, ...]:
    """Return the limits that the nearest candidate breaks, and what would help.

    Args:
        nearest: The candidate that came nearest.
        shapes: The shapes of one feed.
        open_sides: Whether the model takes images of another size.
        devices: What is expected of other devices (`devices_that_fit`).
    """
    found: list[Advice] = []
    for violation in nearest.violations:
        found.append(Advice(limit=f"{violation.describe()}; nearest: {nearest.described}"))
    worst: dict[str, Violation] = {}
    for violation in nearest.violations:
        if violation.figure is None:
            found.append(
                Advice(what=f"{violation.limit} was not measured: measure it on the device, or leave it out")
            )
        else:
            worst[violation.limit] = violation
            found.append(_looser(violation))
    over = max((worst[name].ratio or 1.0 for name in _LATENCY if name in worst), default=1.0)
    if over > 1.0:
        figures = [worst[name] for name in _LATENCY if name in worst]
        found += _smaller_input(figures, over, shapes, open_sides)
        found += devices
    return tuple(found)


def _looser(violation: Violation) -> Advice:
    assert violation.figure is not None
    word = "at least" if violation.limit.startswith("min_") else "at most"
    return Advice(
        what=f"{violation.limit} of {word} {violation.figure:.4g} instead of {violation.allowed:.4g}",
        estimate=violation.figure,
        basis="measured",
    )


def _smaller_input(
    violations: Iterable[Violation], over: float, shapes: Mapping[str, Sequence[int]], open_sides: bool
) -> list[Advice]:
    """An image model's work grows with the area of its input."""
    side = over**-0.5
    images = {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 4 and shape[1] in (1, 3, 4) and min(shape[2:]) >= _LEAST_PIXELS
    }
    if not images or side < _SMALLEST_SIDE:
        return []
    name, shape = next(iter(images.items()))
    height, width = (int(size * side) // 8 * 8 for size in shape[2:])
    first = next(iter(violations))
    part = height * width / (shape[2] * shape[3])
    how = "" if open_sides else ", which needs an export with that shape"
    return [
        Advice(
            what=f"an input {name!r} of {height} x {width} instead of {shape[2]} x {shape[3]}{how}: about "
            f"{(first.figure or 0.0) * part:.3g} ms, if the accuracy allows it",
            estimate=(first.figure or 0.0) * part,
            basis="scaled",
        )
    ]


def devices_that_fit(
    model: Model, budget: Budget, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Advice, ...]:
    """Return devices of the catalog that are expected to keep the latency limits, the slowest of them first.

    Args:
        model: The candidate that came nearest.
        budget: The limits.
        shapes: The shapes of one feed.
    """
    limits = Budget(latency_p50_ms=budget.latency_p50_ms, latency_p99_ms=budget.latency_p99_ms)
    able = [
        fit for fit in select(model, limits, shapes=shapes).fitting if fit.estimate.latency_ms is not None
    ]
    able.sort(key=lambda fit: -_value(fit))
    return tuple(
        Advice(
            what=f"{fit.description} (target {fit.target!r}): about {_value(fit):.3g} ms",
            estimate=_value(fit),
            basis=fit.estimate.basis,
        )
        for fit in able[:_DEVICES]
    )


def _value(fit: Fit) -> float:
    figure = fit.estimate.latency_ms
    return figure.value if figure is not None else 0.0
