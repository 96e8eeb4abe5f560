"""Fitting prices, and what is estimated from them."""

from __future__ import annotations

import json

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.devices import Calibration, Target, calibrate, estimate, local
from edgeinfer.errors import OptionsError
from edgeinfer.estimate.calibrate import fit_calibration, fit_memory
from edgeinfer.estimate.features import BLOCKS, add_up
from edgeinfer.estimate.fit import cross_validated, fit_prices, priced
from edgeinfer.estimate.reference import local_reference, reference
from edgeinfer.estimate.samples import Sample, forms, measure, steady_ratio
from edgeinfer.estimate.synthetic import calibration_net, open_batch, synthetic_net
from edgeinfer.estimate.workload import Workload, workload
from edgeinfer.feeds.generate import generate_feeds
from edgeinfer.graph.build import compile_model
from edgeinfer.runtime.open import load
from tests.estimate.nets import convolutions, separable


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_prices_that_made_the_figures_are_found_again(seed, count):
    rng = np.random.default_rng(seed)
    names = [f"f{i}" for i in range(count)]
    prices = dict(zip(names, rng.uniform(0.5, 5.0, count), strict=True))
    rows = [dict(zip(names, rng.uniform(0.1, 10, count), strict=True)) for _ in range(60)]
    found = fit_prices(rows, [priced(row, prices) for row in rows])
    errors = [priced(row, found) / priced(row, prices) - 1 for row in rows]
    assert np.abs(errors).max() < 0.1


def test_prices_are_never_negative():
    rows = [{"a": 1.0, "b": float(i)} for i in range(1, 20)]
    found = fit_prices(rows, [max(0.1, 5.0 - 0.2 * i) for i in range(1, 20)])
    assert min(found.values()) >= 0


def test_held_out_nets_are_not_seen_by_their_fit():
    rows = [{"run": 1.0, f"only{i}": 1.0} for i in range(10)]
    ratios = cross_validated(rows, [1.0 + i for i in range(10)], [str(i) for i in range(10)])
    assert np.abs(ratios - 1).max() > 0.5  # the feature of its own that explains a net is never known


def test_each_fold_has_nets_of_all_families():
    """The calibration's nets take turns by family; a family that no fit has seen would get no price."""
    rows = [{"run": 1.0, f"family{i % 5}": 1.0} for i in range(40)]
    ratios = cross_validated(rows, [1.0 + 2 * (i % 5) for i in range(40)], [str(i) for i in range(40)])
    assert np.abs(ratios - 1).max() < 0.1


def test_only_turns_in_which_the_machine_was_fast_count():
    busy = np.arange(40) % 4 != 0  # slows the probe by 2, the net by 1.2
    assert steady_ratio(np.where(busy, 12.0, 10.0), np.where(busy, 2.0, 1.0)) == 10.0
    assert steady_ratio([10.0], [2.0]) == 5.0


def sample(number: int, latency_ms: float, added_bytes: int | None = None) -> Sample:
    work = workload(synthetic_net(number), target="onnxruntime")
    return Sample(
        net=str(number), target="onnxruntime", precision="float32", threads=1, ratio=latency_ms,
        probe_ms=1.0, work=work, added_bytes=added_bytes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> tuple[list[Sample], Calibration]:
    """A machine on which a kernel takes 10 µs, a million products 20 µs and a million bytes 50 µs."""
    samples = []
    for number in range(24):
        work = workload(synthetic_net(number), target="onnxruntime")
        moved = sum(k.read_bytes + k.written_bytes for k in work.kernels)
        us = 10 * len(work.kernels) + 20e-6 * work.macs + 50e-6 * moved
        added = 10e6 + 1e5 * len(work.kernels) + 3 * work.file_bytes + 2 * work.plan_bytes
        samples.append(sample(number, us / 1e3, round(added)))
    return samples, fit_calibration(samples, "onnxruntime", process_bytes=50e6)


def test_a_calibration_finds_what_the_machine_is_like(fitted):
    samples, found = fitted
    errors = [found.latency_us(s.work) / (1e3 * s.latency_ms) - 1 for s in samples]
    assert np.median(np.abs(errors)) < 0.05
    memory = found.memory["float32"]
    assert memory.file == pytest.approx(3, rel=0.05)
    assert memory.plan == pytest.approx(2, rel=0.05)
    assert memory.runtime_bytes == pytest.approx(10e6, rel=0.1)
    assert memory.kernel_bytes == pytest.approx(1e5, rel=0.2)
    assert found.bands["float32"].low <= 1 <= found.bands["float32"].high


@pytest.mark.parametrize("block", BLOCKS)
def test_a_calibration_finds_how_many_channels_a_machine_computes_together(fitted, block):
    samples = []
    for each in fitted[0]:
        row = add_up(each.work.kernels, block=block)
        us = 5.0 + sum(20.0 * value for name, value in row.items() if name.endswith("megamacs"))
        samples.append(attrs.evolve(each, ratio=us / 1e3, added_bytes=None))
    found = fit_calibration(samples, "onnxruntime", process_bytes=50e6)
    assert found.block == block
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))).block == block


def test_a_calibration_finds_what_open_shapes_cost(fitted):
    samples = []
    for each in fitted[0]:
        kernels = len(each.work.kernels)
        opened = attrs.evolve(each.work, open_shapes=True)
        samples += [
            attrs.evolve(each, added_bytes=None, ratio=0.02 + 0.01 * kernels),
            attrs.evolve(each, added_bytes=None, ratio=0.02 + 0.03 * kernels, work=opened),
        ]
    found = fit_calibration(samples, "onnxruntime", process_bytes=50e6)
    work = attrs.evolve(workload(convolutions()), open_shapes=True)
    fixed = attrs.evolve(work, open_shapes=False)
    more = found.latency_us(work) - found.latency_us(fixed)
    assert more == pytest.approx(20 * len(work.kernels), rel=0.1)
    assert any("FixShapes" in note for note in found.estimate(work).notes)
    assert not any("FixShapes" in note for note in found.estimate(fixed).notes)


def test_a_third_of_the_nets_leave_their_batch_open():
    opened = [number for number in range(30) if not calibration_net(number).signature.is_static]
    assert opened == list(range(10, 20))


@pytest.mark.parametrize("number", [14, 17])  # with reshapes: a pyramid, attention
def test_an_open_net_computes_what_the_fixed_one_does(number):
    fixed = synthetic_net(number)
    feed = generate_feeds(fixed.signature)[0]
    outputs = []
    for net in (fixed, open_batch(fixed)):
        with load(compile_model(net, "onnxruntime")) as session:
            outputs.append(list(session.infer(feed).values()))
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    open_work, work = (workload(net, target="onnxruntime") for net in (open_batch(fixed), fixed))
    assert open_work.open_shapes
    assert attrs.evolve(open_work, open_shapes=False, file_bytes=work.file_bytes) == work


def test_an_estimate_has_basis_and_band(fitted):
    _, calibration = fitted
    found = estimate(convolutions(), "onnxruntime", calibration=calibration)
    assert found.basis == "calibrated"
    assert found["peak_bytes"].value > 60e6
    for figure in found.figures.values():
        assert figure.low <= figure.value <= figure.high
    assert json.loads(json.dumps(found.to_dict()))["figures"]["latency_p50_ms"]["basis"] == "calibrated"


def test_recurrent_nets_are_left_to_measuring(fitted):
    work = attrs.evolve(workload(convolutions(8)), recurrent=True)
    found = fitted[1].estimate(work)
    assert found.latency_ms is None
    assert any("recurrent" in note for note in found.notes)


def test_it_is_written_and_read(fitted, tmp_path):
    _, calibration = fitted
    path = calibration.save(tmp_path / "machine.json")
    assert Calibration.load(path) == calibration


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "edgeinfer.calibration/1"}'])
def test_what_is_no_calibration_is_refused(tmp_path, text):
    path = tmp_path / "machine.json"
    path.write_text(text)
    with pytest.raises(OptionsError):
        Calibration.load(path)


def test_too_few_nets_are_refused(fitted):
    with pytest.raises(OptionsError, match="too few"):
        calibrate("onnxruntime", nets=5)
    with pytest.raises(OptionsError, match="too few"):
        fit_calibration(fitted[0][:5], "onnxruntime")


def test_memory_of_next_to_no_nets_has_a_band():
    work = workload(separable())
    works = [attrs.evolve(work, file_bytes=size) for size in (10_000, 100_000, 1_000_000, 10_000_000, 5_000)]
    found = fit_memory([(w, 5e6 + 2.0 * w.file_bytes) for w in works], 1e6)
    assert found.added_bytes(works[2]) == pytest.approx(7e6, rel=0.05)


def test_nets_are_really_measured():
    models = forms(separable(), [Target.parse("onnxruntime")], ["float32", "int8"])
    found = measure("net", models, seconds=0.02, with_memory=True)
    assert {s.precision for s in found} <= {"float32", "int8"}
    first = found[0]
    assert first.latency_ms > 0
    assert first.added_bytes > 1e6
    assert Sample.from_dict(json.loads(json.dumps(first.to_dict()))) == first


def test_a_calibration_has_integer_kernels_of_nets_that_gain_nothing_from_them():
    """Or kernels that are slow in integers would get no price, because no net has them."""
    made = forms(synthetic_net(2), [Target.parse("onnxruntime")], ["int8"], gains_only=False)
    work = workload(made["onnxruntime", "int8"], target="onnxruntime")
    assert {"depthwise", "pointwise"} <= {k.kind for k in work.kernels if k.precision == "int8"}


def test_a_reference_is_of_a_cpu_with_vectors_as_wide():
    narrow, wide = reference("openvino"), reference("openvino", ["avx2", "avx512f"])
    assert wide.block == 16
    assert wide.prices_us != narrow.prices_us
    assert reference("numpy-reference", ["avx512f"]) == reference("onnxruntime", ["avx512f"])
    features = local().cpu.features
    assert local_reference("openvino") == reference("openvino", features)


@pytest.mark.parametrize("features", [(), ("avx512f",)])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "numpy-reference"])
def test_the_references_price_every_kind_of_net(backend, features):
    calibration = reference(backend, features)
    works: list[Workload] = [workload(synthetic_net(number)) for number in range(6)]
    for work in works:
        assert calibration.latency_us(work) > 0
        assert calibration.latency_us(work.pruned(0.5)) < calibration.latency_us(work)
    assert add_up(works[0].kernels)["run/calls"] == 1
    assert calibration.memory["float32"].file > 0
    assert calibration.memory["int8"].file > 0
