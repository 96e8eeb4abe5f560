"""PruneNM's order of channels: the model computes the same, and n of every m keep more."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.graph.channels.groups import analyze
from edgeinfer.graph.channels.reorder import may_reorder, reorder
from edgeinfer.model.model import Model
from edgeinfer.pruning.channel_order import channel_order
from edgeinfer.pruning.structure.prepare import prepare
from edgeinfer.transforms import PruneNM

_spec = importlib.util.spec_from_file_location(
    "random_graphs", Path(__file__).with_name("test_random_graphs.py")
)
assert _spec is not None
assert _spec.loader is not None
random_graphs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(random_graphs)
graphs = random_graphs.graphs


def outputs(model: Model, x: np.ndarray) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    every = {**random_graphs.FEED, "x": x}
    feed = {given.name: every[given.name] for given in session.get_inputs()}
    return [each for each in session.run(None, feed) if each.dtype.kind == "f"]


@settings(max_examples=25, deadline=None)
@given(model=random_graphs.networks(), seed=st.integers(0, 100))
def test_any_order_of_the_channels_of_a_group_computes_the_same(model: Model, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = model.copy_ir()
    prepare(graph)
    found = analyze(graph.graph)
    layers = {layer.name: layer for layer in found.layers}
    for group in found.groups:
        if may_reorder(group, [layers[name] for name in {*group.producers, *group.consumers}]):
            reorder(graph.graph, group, rng.permutation(group.size))
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    for before, after in zip(outputs(model, x), outputs(Model(graph), x), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (2, 16)]),
    blocks=st.integers(1, 4),
    rows=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_the_order_is_a_permutation_that_keeps_no_less(
    shape: tuple[int, int], blocks: int, rows: int, seed: int
) -> None:
    n, m = shape
    energy = np.random.default_rng(seed).standard_normal((rows, m * blocks)) ** 4
    order = channel_order(energy, n, m)
    assert sorted(order) == list(range(m * blocks))
    assert kept(energy[:, order], n, m) >= kept(energy, n, m) * (1 - 1e-5)


def test_two_blocks_are_divided_in_the_best_way() -> None:
    energy = np.random.default_rng(5).random((6, 8)) ** 3
    best = max(kept(energy[:, list(order)], 2, 4) for order in divisions())
    np.testing.assert_allclose(kept(energy[:, channel_order(energy, 2, 4)], 2, 4), best, rtol=1e-6)


def divisions() -> list[list[int]]:
    halves = itertools.combinations(range(8), 4)
    return [[*half, *(set(range(8)) - set(half))] for half in halves]


def kept(energy: np.ndarray, n: int, m: int) -> float:
    return float(np.sort(energy.reshape(len(energy), -1, m), axis=2)[..., m - n :].sum())


def two_layers() -> tuple[Model, dict[str, np.ndarray]]:
    """A net whose second layer reads four loud channels side by side, and four quiet ones."""
    b = graphs.Builder(seed=1)
    x = b.input("x", ["N", 3, 8, 8])
    hidden = b.op("Relu", b.conv(x, 3, 8))
    y = b.conv(hidden, 8, 4, 1)
    model = b.model(b.op("Flatten", b.op("GlobalAveragePool", y)))
    graph = model.copy_ir()
    second = [node for node in graph.graph if node.op_type == "Conv"][1]
    weight = second.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[:, 4:] *= 0.01  # PruneNM keeps two of the first four, and two of these, as they lie
    weight.const_value = ir.tensor(array, name=weight.name)
    rng = np.random.default_rng(0)
    return Model(graph), {"x": rng.standard_normal((16, 3, 8, 8)).astype(np.float32)}


def test_loud_channels_do_not_compete_with_each_other() -> None:
    model, feed = two_layers()
    wanted = outputs(model, feed["x"])[0]

    def error(**options: bool) -> float:
        result, report = PruneNM(calibration=[feed], keep_nodes=["Conv0"], **options).apply(model)
        assert not any("another order" in entry.what for entry in report.applied)
        return float(np.square(outputs(result, feed["x"])[0] - wanted).sum())

    # What makes the channels stays as it is, so they keep their order.
    assert error() == error(reorder=False)
    reordered, report = PruneNM(calibration=[feed]).apply(model)
    plain, _ = PruneNM(calibration=[feed], reorder=False).apply(model)
    assert sum("another order" in entry.what for entry in report.applied) == 1
    far = [np.square(outputs(each, feed["x"])[0] - wanted).sum() for each in (reordered, plain)]
    assert far[0] < 0.5 * far[1]
