"""No integer kernel overflows, on any CPU: where it adds pairs of products in 16 bits, weights are small."""

from __future__ import annotations

import attrs
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer.devices.profile import Target
from edgeinfer.model.model import Model
from edgeinfer.numerics.gptq import Grid, output_error, round_weights
from edgeinfer.numerics.pair_sums import GREATEST_PAIR, greatest_pair, neighbours, partners, safe_scale
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.placement.pair_overflow import adds_pairs_in_int16
from edgeinfer.transforms import QuantizeDynamic, QuantizeStatic, RetargetQDQ, RoundWeights
from tests.quantization.qdq_models import CHANNELS, Builder, feeds, initializer, run_plain

CPUS = ("onnxruntime", "openvino")
SAME_DB = 40.0  # two kernels for one int8 graph
NARROW = attrs.evolve(dialect_of("openvino"), pairs_in_int16=True)
WIDE = attrs.evolve(NARROW, pairs_in_int16=False)


def test_neighbours_are_channels_at_one_position_and_what_follows_over_the_filter() -> None:
    assert neighbours(5).tolist() == [[0, 1], [2, 3]]
    assert neighbours(4, 2).tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    # Odd: by position (0, 2) and (1, 3); over the filter, in the order 0 2 4 1 3 5, also (1, 4) and (3, 5).
    assert neighbours(3, 2).tolist() == [[0, 2], [1, 3], [1, 4], [3, 5]]
    assert neighbours(1).size == neighbours(0).size == 0
    assert partners(neighbours(3, 2), 6).tolist() == [[2, -1], [3, 4], [0, -1], [1, 5], [1, -1], [3, -1]]


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 9),
    positions=st.integers(1, 9),
    tails=st.floats(0.5, 3.0),
)
def test_a_safe_scale_is_the_least_and_no_pair_overflows(seed, channels, positions, tails) -> None:
    rng = np.random.default_rng(seed)
    filters = rng.standard_normal((6, channels * positions)).astype(np.float32)
    filters = np.sign(filters) * np.abs(filters) ** np.float32(tails)
    scale = (np.abs(filters).max(axis=1) / 127).astype(np.float32)
    pairs = neighbours(channels, positions)
    safe = safe_scale(filters, scale, pairs)
    levels = np.rint(filters / safe[:, None])
    sums = greatest_pair(levels, pairs)
    assert (sums <= GREATEST_PAIR).all()
    assert (safe >= scale).all()
    assert (safe <= scale * 2 * 127 / 126.9).all()  # 7 bits do it in any case
    untouched = greatest_pair(np.rint(filters / scale[:, None]), pairs) <= GREATEST_PAIR
    assert np.array_equal(safe[untouched], scale[untouched])
    assert (sums[~untouched] >= GREATEST_PAIR - 2).all()
    one = safe_scale(filters, np.float32(scale.max()), pairs)
    assert (greatest_pair(np.rint(filters / one), pairs) <= GREATEST_PAIR).all()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 3),
    channels=st.integers(1, 12),
    act_order=st.booleans(),
)
def test_rounding_by_output_error_keeps_pairs_from_overflowing(seed, groups, channels, act_order) -> None:
    rng = np.random.default_rng(seed)
    pairs = neighbours(channels, 3)
    weights = rng.standard_normal((groups, 5, 3 * channels)).astype(np.float32)
    inputs = np.maximum(
        rng.standard_normal((groups, 3 * channels, 40)) + rng.standard_normal((groups, 1, 40)), 0
    )
    scale = safe_scale(weights, np.abs(weights).max(axis=2) / np.float32(127), pairs)[..., None]
    grid = Grid(scale=scale, low=-127, high=127, partners=partners(pairs, 3 * channels))
    moment = inputs @ inputs.transpose(0, 2, 1)
    integers = round_weights(weights, moment, grid, act_order=act_order)
    assert (greatest_pair(integers, pairs) <= GREATEST_PAIR).all()
    nearest = output_error(weights, grid.dequantize(grid.quantize(weights)), moment)
    assert (output_error(weights, grid.dequantize(integers), moment) <= nearest * (1 + 1e-6)).all()


def _alike() -> Model:
    """Two convolutions, one of them of odd channels, and a Gemm, whose weights are all as large as can be."""
    b = Builder(1, 3, 12, 12)
    first = b.node("Relu", b.conv(b.input, "first", 3, CHANNELS), name="relu1")
    second = b.node("Relu", b.conv(first, "second", CHANNELS, CHANNELS), name="relu2")
    flat = b.node("Flatten", b.node("GlobalAveragePool", second, name="gap"), name="flat")
    model = b.model(b.matmul(flat, "fc", CHANNELS, 10), 1, 10)
    graph = model.copy_ir()
    for name in ("first_w", "second_w", "fc_w"):
        value = graph.graph.initializers[name]
        signs = np.where(np.random.default_rng(len(name)).random(value.shape.numpy()) < 0.9, 1, -1)
        value.const_value = ir.tensor((0.1 * signs).astype(np.float32), name=name)
    return Model.from_ir(graph)


def _db(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = np.sum((wanted.astype(np.float64) - got) ** 2)
    return float(10 * np.log10(np.sum(wanted.astype(np.float64) ** 2) / max(noise, 1e-30)))


def _bright(model: Model) -> list[dict[str, np.ndarray]]:
    return [{"x": np.abs(feed["x"]) + 1} for feed in feeds(model)]


@pytest.mark.parametrize("target", CPUS)
@pytest.mark.parametrize("mend", [False, True])
def test_a_quantized_model_runs_on_this_cpu_as_its_graph_says(target, mend) -> None:
    model = _alike()
    given = _bright(model)
    everything = attrs.evolve(dialect_of(target), costs=None)
    quantized = QuantizeStatic(given, target=everything, method="minmax").apply(model).model
    if mend:
        quantized = RoundWeights(given).apply(quantized).model
    with ei.load(ei.compile(quantized, target)) as session:
        (got,) = session.infer(given[0]).values()
    assert _db(run_plain(quantized, given[0]), got) > SAME_DB


def test_weights_are_kept_small_where_the_dialect_says_so_and_only_there() -> None:
    model = _alike()
    given = _bright(model)
    wide, narrow = (QuantizeStatic(given, target=each).apply(model) for each in (WIDE, NARROW))
    for name, channels, positions in (("first_w", 3, 9), ("second_w", CHANNELS, 9)):
        pairs = neighbours(channels, positions)
        stored = initializer(narrow.model, f"{name}_quantized").reshape(CHANNELS, -1)
        assert greatest_pair(stored.astype(int), pairs).max() in (127, 128)
        assert np.abs(initializer(wide.model, f"{name}_quantized")).max() == 127
    assert any("16 bits" in note and "3 weights" in note for note in narrow.report.notes)
    assert not any("16 bits" in note for note in wide.report.notes)


def test_a_depthwise_convolution_keeps_all_eight_bits() -> None:
    b = Builder(1, CHANNELS, 12, 12)
    model = b.model(b.conv(b.input, "dw", CHANNELS, CHANNELS, group=CHANNELS), 1, CHANNELS, 12, 12)
    narrow = QuantizeStatic(feeds(model), target=NARROW).apply(model).model
    assert (np.abs(initializer(narrow, "dw_w_quantized")).reshape(CHANNELS, -1).max(axis=1) == 127).all()


def test_retargeting_keeps_weights_small_too() -> None:
    model = _alike()
    given = _bright(model)
    there = attrs.evolve(dialect_of("tensorrt"), pairs_in_int16=False)
    wide = QuantizeStatic(given, target=there).apply(model).model
    narrow = RetargetQDQ(NARROW).apply(wide).model
    stored = initializer(narrow, "second_w_quantized").reshape(CHANNELS, -1).astype(int)
    assert greatest_pair(stored, neighbours(CHANNELS, 9)).max() <= GREATEST_PAIR


def test_dynamic_quantization_runs_on_this_cpu_as_its_graph_says() -> None:
    b = Builder(8, 64)
    model = b.model(b.matmul(b.input, "fc", 64, 96), 8, 96)
    graph = model.copy_ir()
    value = graph.graph.initializers["fc_w"]
    value.const_value = ir.tensor(np.full((64, 96), 0.1, np.float32), name="fc_w")
    model = Model.from_ir(graph)
    feed = {"x": np.full((8, 64), 3.0, np.float32)}
    quantized = QuantizeDynamic(target="onnxruntime").apply(model).model
    with ei.load(ei.compile(quantized, "onnxruntime")) as session:
        (got,) = session.infer(feed).values()
    assert _db(feed["x"] @ np.full((64, 96), 0.1, np.float32), got) > SAME_DB


def test_a_profile_is_of_another_machine() -> None:
    assert not adds_pairs_in_int16(Target.parse("x86-vnni"))
    assert not adds_pairs_in_int16(Target.parse("openvino:GPU.7"))
    assert adds_pairs_in_int16(Target.parse("onnxruntime")) == adds_pairs_in_int16(
        Target.parse("onnxruntime:CPU")
    )
