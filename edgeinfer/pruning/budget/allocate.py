"""Allocation: how many channels each group gives up, so that a budget is met at the least loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeinfer.graph.channels.groups import ChannelGroup
from edgeinfer.pruning.budget.cost import CostModel

__all__ = ["allocate", "allocate_closely", "levels", "step_of"]

# A plan may save so much more than was asked for, as a part of the entire cost, before finer steps are tried.
_SLACK = 0.05


def step_of(size: int, multiple: int) -> int:
    """Return the step in which a group of `size` channels is pruned.

    The multiple that the hardware likes, halved until there are two steps in the group: a layer of 16
    channels gives up eight where a runtime computes in blocks of 16.
    """
    step = multiple
    while step > 1 and step * 2 > size:
        step //= 2
    return max(step, 1)


def levels(size: int, multiple: int, max_ratio: float) -> list[int]:
    """Return the numbers of channels that may be removed, ascending, so that what is left is a multiple.

    A group of one channel may go as a whole; a larger one keeps at least `1 - max_ratio` of its channels.
    """
    if size == 1:
        return [1]
    step = step_of(size, multiple)
    least = max(1, step if size > step else 1, round(size * (1 - max_ratio)))
    return [size - kept for kept in range(size - 1, 0, -1) if kept % step == 0 and kept >= least]


def allocate(
    groups: Sequence[ChannelGroup],
    errors: Mapping[str, Sequence[float]],
    cost: CostModel,
    budget: float,
    *,
    multiple: int = 8,
    max_ratio: float = 0.85,
) -> dict[str, int]:
    """Return how many channels each group gives up.

    Greedy on the ratio of added error to saved cost, looking ahead over all levels of a group, so that a
    costly first step does not hide a cheap second one.

    Args:
        groups: The groups.
        errors: By group, the cumulative error after removing 1, 2, ... channels.
        cost: The cost of the graph.
        budget: The cost to reach.
        multiple: The multiple that channel counts should keep.
        max_ratio: The largest part of a group that may go.
    """
    removed = {group.name: 0 for group in groups}
    choices = {group.name: levels(group.size, multiple, max_ratio) for group in groups}
    current = cost.cost(removed)
    while current > budget:
        best: tuple[float, str, int, float] | None = None
        for name, options in choices.items():
            at = removed[name]
            base = errors[name][at - 1] if at else 0.0
            for level in options:
                if level <= at:
                    continue
                trial = {**removed, name: level}
                saved = -cost.change(removed, trial, name)
                if saved <= 0 or not cost.feasible(trial, name):
                    continue
                # What goes beyond the budget is worth nothing, and more is lost than was asked for.
                useful = min(saved, current - budget)
                ratio = (errors[name][level - 1] - base) / useful * (saved / useful)
                if best is None or ratio < best[0]:
                    best = ratio, name, level, saved
        if best is None:
            break
        _, name, level, saved = best
        current -= saved
        removed[name] = level
    _give_back(removed, choices, errors, cost, budget - current)
    return {name: count for name, count in removed.items() if count}


def allocate_closely(
    groups: Sequence[ChannelGroup],
    errors: Mapping[str, Sequence[float]],
    cost: CostModel,
    budget: float,
    *,
    multiple: int,
) -> tuple[dict[str, int], str]:
    """Return how many channels each group gives up so that the budget is met closely, and what to say of it.

    Where the steps of a multiple are so large that much more would go than was asked for, smaller multiples
    are tried, and the allocation nearest to the budget that meets it is taken.

    Args:
        groups: The groups.
        errors: See `allocate`.
        cost: The cost of the graph.
        budget: The cost to reach.
        multiple: The multiple that channel counts should keep.
    """
    before, tried = cost.cost({}), multiple
    first = best = allocate(groups, errors, cost, budget, multiple=multiple)
    used = multiple
    while tried > 1 and not budget - _SLACK * before <= cost.cost(best) <= budget:
        tried //= 2
        other = allocate(groups, errors, cost, budget, multiple=tried)
        if _nearer(cost.cost(other), cost.cost(best), budget):
            best, used = other, tried
    reached = cost.cost(best) / before
    if used < multiple:
        coarse = cost.cost(first) / before
        return best, (
            f"channel counts are multiples of {used}, not {multiple}: with {multiple} the nearest to "
            f"{budget / before:.0%} would have been {coarse:.1%}"
        )
    if cost.cost(best) < budget - _SLACK * before:
        return best, f"no combination of whole steps is nearer to {budget / before:.0%} than {reached:.1%}"
    return best, ""


def _nearer(cost: float, than: float, budget: float) -> bool:
    """Tell whether a cost suits a budget better: met is better than missed, then the nearest."""
    if (cost <= budget) != (than <= budget):
        return cost <= budget
    return abs(budget - cost) < abs(budget - than)


def _give_back(
    removed: dict[str, int],
    choices: Mapping[str, Sequence[int]],
    errors: Mapping[str, Sequence[float]],
    cost: CostModel,
    spare: float,
) -> None:
    """Take back, in place, what later steps have made needless; what costs the most error first."""
    while spare > 0:
        gains = []
        for name, at in removed.items():
            for level in (0, *choices[name]) if at else ():
                added = cost.change(removed, {**removed, name: level}, name)
                if level < at and added <= spare:
                    gain = errors[name][at - 1] - (errors[name][level - 1] if level else 0.0)
                    gains.append((gain, name, level, added))
        gain, name, level, added = max(gains, default=(0.0, "", 0, 0.0))
        if gain <= 0:
            return
        removed[name] = level
        spare -= added
