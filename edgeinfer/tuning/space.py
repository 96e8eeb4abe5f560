"""The search space: which candidates there are for a model on a target.

The list is drawn from the seed, and a candidate's place in it is its index: the same inputs give the same
list, whatever happened to an earlier run. The first two are the baselines: the float model and the int8
model, both with the default options; after them come the same two with every other set of options, the float
model with fixed shapes and in each narrower type that the device has natively, then each part that may be
kept in each precision, then variants of int8 in an order drawn from the seed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.backends.protocol import Capabilities
from edgeinfer.devices.profile import Target
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.values import as_tuple

__all__ = ["FLOAT", "INT8", "KEEP_MACS", "SIZE", "Space", "narrow_sets", "option_sets", "precisions_of"]

FLOAT, INT8 = 0, 1  # the indices of the baselines
SIZE = 1000
KEEP_MACS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_KEEP_HEADS = (0.9, 0.75, 0.6, 0.5, 0.35, 0.25)
# How many of the most sensitive layers stay in float, as parts of all.
_FLOAT_PARTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
_METHODS = ("mse", "minmax", "percentile")
_EFFORTS = ("plain", "corrected", "searched")


@final
@attrs.frozen(kw_only=True)
class Space:
    """What may be varied.

    Attributes:
        precisions: The precisions that the target has.
        prunes: What of the model can be pruned: `channels`, `heads`.
        options: Sets of options; the first is the default one.
        narrow: Sets of options that change what is computed; each is tried with each model.
        fixes: Whether shapes are fixed to those of the feeds, of all but the original.
        sensitive: The names of the layers that int8 would run, the most sensitive first.
    """

    precisions: tuple[str, ...] = attrs.field(converter=as_tuple)
    prunes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    options: tuple[Mapping[str, Any], ...] = attrs.field(default=({},), converter=as_tuple)
    narrow: tuple[Mapping[str, Any], ...] = attrs.field(default=(), converter=as_tuple)
    fixes: bool = False
    sensitive: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    def __hash__(self) -> int:
        return hash(repr(self))  # options are mappings

    def candidates(self, seed: int, size: int = SIZE) -> tuple[Candidate, ...]:
        """Return the baselines and, behind them, candidates in an order drawn from the seed."""
        return _drawn(self, seed, size)

    def baselines(self) -> tuple[Candidate, ...]:
        """Return the float and the int8 model with the default options, then with the others.

        Behind them comes the float model with fixed shapes, and in each narrower type.
        """
        models = [Candidate()]
        if "int8" in self.precisions:
            models.append(Candidate(precision="int8", method="mse", effort="plain", fixed=self.fixes))
        more = [Candidate(fixed=True)] * self.fixes
        more += [Candidate(narrow=narrow, fixed=self.fixes) for narrow in self.narrow]
        return (
            *(attrs.evolve(model, options=options) for options in self.options for model in models),
            *(attrs.evolve(model, options=options) for model in more for options in self.options),
        )

    def every(self) -> list[Candidate]:
        """Return all candidates, in the order of their decisions."""
        pruned = [("", 1.0)]
        pruned += [("channels", keep) for keep in KEEP_MACS if "channels" in self.prunes]
        pruned += [("heads", keep) for keep in _KEEP_HEADS if "heads" in self.prunes]
        plain = [each for each in self.precisions if each != "int8"]
        made: list[Candidate] = [
            Candidate(prune=prune, keep=keep, precision=precision, options=options)
            for (prune, keep), precision, options in itertools.product(pruned, plain, self.options)
        ]
        if "int8" in self.precisions:
            made += [
                Candidate(
                    prune=prune,
                    keep=keep,
                    precision="int8",
                    method=method,
                    effort=effort,
                    keep_float=layers,
                    options=options,
                )
                for (prune, keep), method, effort, layers, options in itertools.product(
                    pruned, _METHODS, _EFFORTS, self._float_layers(), self.options
                )
            ]
        return [
            attrs.evolve(each, narrow=narrow, fixed=self.fixes)
            for each in made
            for narrow in ({}, *self.narrow)
        ]

    def _float_layers(self) -> list[tuple[str, ...]]:
        counts = {round(part * len(self.sensitive)) for part in _FLOAT_PARTS}
        return [self.sensitive[:count] for count in sorted(counts)]


@functools.lru_cache(maxsize=8)
def _drawn(space: Space, seed: int, size: int) -> tuple[Candidate, ...]:
    first = space.baselines()
    known = {_identity(candidate) for candidate in first}
    rest = [each for each in space.every() if _identity(each) not in known]
    # One of each kind before the variants of it, so that no kind is left to chance.
    simple = [each for each in rest if _is_simple(each)]
    varied = [each for each in rest if not _is_simple(each)]
    order = np.random.default_rng(seed).permutation(len(varied))
    return (*first, *simple, *(varied[index] for index in order))[: max(size, len(first))]


def _is_simple(candidate: Candidate) -> bool:
    usual = (candidate.method, candidate.effort, candidate.keep_float) == ("mse", "corrected", ())
    return candidate.precision != "int8" or usual


def _identity(candidate: Candidate) -> tuple[str, str]:
    return candidate.model_key, repr(candidate.options)


def option_sets(
    capabilities: Capabilities, target: Target, cores: int, fixed: Mapping[str, Any]
) -> tuple[dict[str, Any], ...]:
    """Return the sets of options worth measuring: the default one, other numbers of threads, what else helps.

    Args:
        capabilities: The backend's.
        target: The target.
        cores: Cores that may be used.
        fixed: Options that all candidates have; they are not varied.
    """
    sets: list[dict[str, Any]] = [dict(fixed)]
    option = capabilities.threads_option
    if option is not None and option not in fixed and _on_cpu(capabilities, target):
        counts = sorted({1, *(count for count in (2, 4, 8) if count < cores)})
        sets += [{**fixed, option: count} for count in counts if count < cores or cores == 1]
    sets += [{**fixed, **more} for more in capabilities.tuning_options if not set(more) & set(fixed)]
    unique: list[dict[str, Any]] = []
    for each in sets:
        if each not in unique:
            unique.append(each)
    return tuple(unique)


def _on_cpu(capabilities: Capabilities, target: Target) -> bool:
    device = capabilities.device(target.device)
    name = target.device or (device.name if device is not None else "")
    return name.upper().startswith("CPU") or not name


def narrow_sets(
    capabilities: Capabilities, target: Target, fixed: Mapping[str, Any]
) -> tuple[dict[str, Any], ...]:
    """Return the sets of options with which the device computes in a narrower type that it has natively.

    Args:
        capabilities: The backend's, on the machine with the device.
        target: The target.
        fixed: Options that all candidates have; they are not varied.
    """
    device = capabilities.device(target.device)
    if device is None:
        return ()
    return tuple(
        dict(options)
        for precision, options in capabilities.narrow_options.items()
        if precision in device.precisions and not set(options) & set(fixed)
    )


def precisions_of(capabilities: Capabilities, target: Target) -> tuple[str, ...]:
    """Return the precisions that are worth trying on a target."""
    found = ["float32"]
    unit = target.profile.precisions if target.profile is not None else None
    device = capabilities.device(target.device)
    name = target.device or (device.name if device is not None else "")
    half = name.upper().startswith(capabilities.float16_devices) if capabilities.float16_devices else False
    if half or (unit is not None and "float16" in unit):
        found.append("float16")
    if capabilities.dialect is not None and (unit is None or "int8" in unit):
        found.append("int8")
    return (*found, "dynamic", "weights8")
