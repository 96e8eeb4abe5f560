"""Models whose outputs come back as inputs of the next call, such as the state of a recurrent net.

An int8 model gets back the state that it made itself, and its errors with it: on Silero VAD the outputs are
at 29 dB with the float model's states and at 21 dB with its own. So such a model is judged in closed loop.

Which outputs come back is found by the data, where feeds follow each other as they were recorded: the input
of one feed is the float model's output of the feed before. Where they do not, or the float model has drifted
since they were recorded, the names must say it: `state` and `stateN`, `h0` and `hn`, `past_x` and
`present_x`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import final

import attrs
import numpy as np

from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import TransformOptionError
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.model_runs import Feed, run_outputs

__all__ = ["Feedback", "find_feedback"]

# Words that tell the two ends of a loop apart, and numbers and letters that do.
_ENDS = frozenset(
    re.split(
        r"\s+",
        """0 1 cur current in init initial inp input last n new next old out output past present
    prev previous t""",
    )
)
_FEEDS = 8  # that follow each other are looked at
_AGREE = 1e-3  # of the greatest magnitude: what another runtime may have recorded


@final
@attrs.frozen(kw_only=True)
class Feedback:
    """What comes back, and how that was found.

    Attributes:
        back: The output that each such input takes its next value from.
        in_order: Whether the feeds follow each other as they were recorded.
    """

    back: Mapping[str, str]
    in_order: bool = False


def find_feedback(model: Model, feeds: Sequence[Feed], given: Mapping[str, str] | None = None) -> Feedback:
    """Find the outputs that come back as inputs.

    Args:
        model: The float model.
        feeds: The first feeds of the calibration, in order.
        given: The output of each input that comes back, if that is known; empty for none.

    Raises:
        TransformOptionError: What is given does not fit the model.
    """
    signature = model.signature
    if given is not None:
        _check(signature, given)
    pairs = _pairs(signature) if given is None else [*given.items()]
    if not pairs:
        return Feedback(back={})
    followed = _followed(model, feeds[:_FEEDS], pairs)
    if given is not None:
        return Feedback(back=dict(given), in_order=set(given.items()) <= set(followed))
    if followed:
        return Feedback(back=dict(followed), in_order=True)
    inputs = [spec.name for spec in signature.inputs]
    named = [pair for pair in pairs if len(inputs) > 1 and () != _stem(pair[0]) == _stem(pair[1])]
    return Feedback(back=dict(named))


def _check(signature: Signature, given: Mapping[str, str]) -> None:
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    for name, source in given.items():
        if name not in inputs or source not in outputs or not _fits(inputs[name], outputs[source]):
            raise TransformOptionError(
                f"Output {source!r} cannot come back as input {name!r}.",
                where="QuantizeInt8, feedback",
                expected="an input, and an output of its dtype and shape",
                found=signature.describe(),
            )


def _pairs(signature: Signature) -> list[tuple[str, str]]:
    """Return the inputs with the float outputs of their dtype and shape."""
    return [
        (given.name, made.name)
        for given in signature.inputs
        for made in signature.outputs
        if given.dtype.kind == "f" and _fits(given, made)
    ]


def _fits(given: TensorSpec, made: TensorSpec) -> bool:
    if given.dtype != made.dtype or given.shape is None or made.shape is None:
        return False
    if len(given.shape) != len(made.shape) or not given.shape:
        return False
    return all(
        a == b or not (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(given.shape, made.shape, strict=True)
    )


def _followed(model: Model, feeds: Sequence[Feed], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs whose input is what the model gave for the feed before, in every feed."""
    if len(feeds) < 2:
        return []
    outputs = [spec.name for spec in model.signature.outputs]
    made = [dict(zip(outputs, found, strict=True)) for found in run_outputs(model, feeds[:-1])]

    def follows(name: str, source: str) -> bool:
        return all(
            _same(before[source], after[name]) for before, after in zip(made, feeds[1:], strict=True)
        ) and any(np.any(feed[name] != feeds[0][name]) for feed in feeds[1:])

    return [pair for pair in pairs if follows(*pair)]


def _same(made: np.ndarray, given: np.ndarray) -> bool:
    if made.shape != given.shape:
        return False
    size = float(np.abs(made).max(initial=0.0))
    return bool(np.abs(made.astype(np.float64) - given).max(initial=0.0) <= _AGREE * max(size, 1e-6))


def _stem(name: str) -> tuple[str, ...]:
    """Return what is left of a name without what tells the ends of a loop apart."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)
    kept = [word.lower() for word in words]
    kept = [re.sub(r"(?<=[a-z])n$", "", word) if word in ("hn", "cn") else word for word in kept]
    return tuple(word for word in kept if word not in _ENDS)
