"""Allocation: the budget is met, and nothing is given up that it does not need."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.graph.channels.groups import ChannelGroup
from edgeinfer.pruning.budget.allocate import allocate, levels
from edgeinfer.pruning.budget.cost import Axis, CostModel, Term


@st.composite
def problems(draw):
    """A chain of layers, the channels between two of them being a group, with rising errors."""
    sizes = draw(st.lists(st.integers(2, 40), min_size=1, max_size=5))
    names = [f"g{index}" for index in range(len(sizes))]
    groups = [
        ChannelGroup(name=name, size=size, slices=(), producers=(), consumers=())
        for name, size in zip(names, sizes, strict=True)
    ]
    axes = [
        Axis(fixed=3, per_channel=()),
        *(Axis(fixed=0, per_channel=((n, s, 1),)) for n, s in zip(names, sizes, strict=True)),
        Axis(fixed=5, per_channel=()),
    ]
    factors = draw(st.lists(st.integers(1, 9), min_size=len(axes) - 1, max_size=len(axes) - 1))
    terms = [
        Term(node=str(index), factor=float(factor), axes=(axes[index], axes[index + 1]))
        for index, factor in enumerate(factors)
    ]
    errors = {}
    for name, size in zip(names, sizes, strict=True):
        steps = draw(st.lists(st.floats(0.01, 1.0), min_size=size, max_size=size))
        errors[name] = [sum(steps[: count + 1]) for count in range(size)]
    keep = draw(st.floats(0.4, 0.95))
    return groups, errors, CostModel(terms=tuple(terms), axes=tuple(axes)), keep


@settings(max_examples=60, deadline=None)
@given(problem=problems(), multiple=st.sampled_from([1, 4, 16]))
def test_the_budget_is_met_with_nothing_to_spare(problem, multiple):
    groups, errors, cost, keep = problem
    budget = keep * cost.cost({})
    removed = allocate(groups, errors, cost, budget, multiple=multiple)
    choices = {group.name: levels(group.size, multiple, 0.85) for group in groups}
    most = {name: options[-1] for name, options in choices.items() if options}
    if cost.cost(most) > budget + 1e-6:
        return
    assert cost.cost(removed) <= budget + 1e-6
    for name, count in removed.items():
        for less in (0, *choices[name]):
            if less < count:
                assert cost.cost({**removed, name: less}) > budget - 1e-6


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_changes_add_up_to_the_cost(problem):
    groups, _, cost, _ = problem
    state: dict[str, int] = {}
    total = cost.cost(state)
    for group in groups:
        then = {**state, group.name: group.size // 2}
        total += cost.change(state, then, group.name)
        state = then
    assert abs(total - cost.cost(state)) < 1e-6
