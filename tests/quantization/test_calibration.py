"""Calibration sources, and the pass that feeds the observers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeinfer.calibration import sampler
from edgeinfer.calibration.calibration import as_calibration, observe
from edgeinfer.calibration.observers import MinMaxObserver, make_observer
from edgeinfer.errors import CalibrationError, TransformError
from edgeinfer.graph.taps import probe_sizes
from edgeinfer.model.model import Model

RELU_NET = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[{n}, 3] x) => (float[{n}, 3] y)
{{
    h = Relu(x)
    k = Add(h, h)
    y = Neg(k)
}}
"""


def net(n: str = "N") -> Model:
    return Model.load(onnx.parser.parse_model(RELU_NET.format(n=n)))


def samples(count: int = 4, rows: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((rows, 3)).astype(np.float32) for _ in range(count)]


class Tensor:
    """What this library sees of a PyTorch tensor."""

    def __init__(self, array):
        self._array, self.shape, self.dtype = array, array.shape, "torch.float32"

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self._array


class Loader:
    """What this library sees of a DataLoader."""

    def __iter__(self):
        return iter([[Tensor(x), Tensor(np.array([1]))] for x in samples()])


class Reader:
    def __init__(self):
        self.rewind()

    def rewind(self):
        self._left = [{"x": x} for x in samples()]

    def get_next(self):
        return self._left.pop(0) if self._left else None


def folder(tmp_path, kind):
    for i, x in enumerate(samples()):
        np.save(tmp_path / f"{i}.npy", x) if kind == "npy" else np.savez(tmp_path / f"{i}.npz", x=x)
    return tmp_path


@pytest.mark.parametrize(
    "form", ["feeds", "arrays", "factory", "loader", "reader", "npy", "npz", "calibration"]
)
def test_every_form_of_source_gives_the_same_feeds_twice(form, tmp_path):
    source = {
        "feeds": lambda: [{"x": x} for x in samples()],
        "arrays": samples,
        "factory": lambda: lambda: ({"x": x} for x in samples()),
        "loader": Loader,
        "reader": Reader,
        "npy": lambda: folder(tmp_path, "npy"),
        "npz": lambda: str(folder(tmp_path, "npz")),
        "calibration": lambda: as_calibration(samples(), net().signature),
    }[form]()
    calibration = as_calibration(source, net().signature)
    for _ in range(2):
        feeds = list(calibration)
        assert len(feeds) == 4
        for feed, x in zip(feeds, samples(), strict=True):
            np.testing.assert_array_equal(feed["x"], x)
    assert len(list(calibration.take(2))) == 2


def test_the_rows_of_one_array_are_samples_and_batches_are_split_for_a_fixed_batch():
    x = samples(1, rows=6)[0]
    for stacked in (x, {"x": x}):
        assert [f["x"].shape for f in as_calibration(stacked, net().signature)] == [(1, 3)] * 6
        assert [f["x"].shape for f in as_calibration(stacked, net("2").signature)] == [(2, 3)] * 3
    assert [f["x"].shape for f in as_calibration([x], net().signature)] == [(6, 3)]


def test_a_generator_is_refused_with_a_hint():
    with pytest.raises(CalibrationError, match="only once") as caught:
        as_calibration((x for x in samples()), net().signature)
    assert "generator function itself" in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (np.zeros((1, 3)), "dtype"),
        (np.zeros((1, 4), np.float32), "shape"),
        ({"z": np.zeros((1, 3), np.float32)}, "names"),
        ("text", "neither an array nor a mapping"),
    ],
)
def test_a_bad_sample_is_named_by_its_number(bad, what):
    with pytest.raises(CalibrationError, match=what) as caught:
        list(as_calibration([*samples(2), bad], net().signature))
    assert "sample 2" in (caught.value.where or "")
    assert caught.value.facts["sample"] == 2


def test_damaged_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match="no such folder"):
        as_calibration(tmp_path / "none", net().signature)
    with pytest.raises(CalibrationError, match=r"no \.npy"):
        as_calibration(tmp_path, net().signature)
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(CalibrationError, match="not a file of numpy arrays"):
        list(as_calibration(tmp_path, net().signature))


def test_a_failing_source_is_wrapped():
    def source():
        yield samples()[0]
        raise OSError("disk on fire")

    with pytest.raises(CalibrationError, match="disk on fire") as caught:
        list(as_calibration(source, net().signature))
    assert caught.value.where == "sample 1"


@pytest.mark.parametrize("max_bytes", [1 << 20, 13, 1])
@pytest.mark.parametrize("n", ["N", "2"])
def test_one_pass_shows_every_tensor_to_all_its_observers_whatever_the_memory(n, max_bytes):
    model = net(n)
    data = samples(5, rows=2)
    first, second, mse = MinMaxObserver(), MinMaxObserver(), make_observer("mse")
    observers = {"x": MinMaxObserver(), "h": [first, mse], "k": second, "y": MinMaxObserver()}
    summary = observe(model, as_calibration(data, model.signature), observers, max_bytes=max_bytes)
    x = np.stack(data)
    assert observers["x"].range() == (x.min(), x.max())
    assert first.range() == (0, x.max())
    assert mse.extremes == (0, x.max())
    assert second.range() == (0, 2 * x.max())
    assert observers["y"].range()[0] == -2 * x.max()
    assert (summary.samples, summary.rows, summary.tensors) == (5, 10, 4)


def test_samples_of_unlike_shapes_are_fine():
    data = [samples(1, rows=n)[0] for n in (1, 5, 3)]
    observer = MinMaxObserver()
    observe(net(), as_calibration(data, net().signature), {"h": observer}, max_bytes=16)
    assert observer.range()[1] == max(x.max() for x in data)


@pytest.mark.parametrize(("max_bytes", "fewest", "most"), [(256 << 20, 1, 1), (20_000, 2, 20)])
def test_longer_feeds_are_measured_only_where_they_may_not_fit(monkeypatch, max_bytes, fewest, most):
    opened = []

    def counted(*args, **options):
        opened.append(args)
        return probe_sizes(*args, **options)

    monkeypatch.setattr(sampler, "probe_sizes", counted)
    text = """
    <ir_version: 9, opset_import: ["" : 17]>
    net (float[N, 3] x) => (float[M] y)
    {
        where = NonZero(x)
        at = Transpose(where)
        y = GatherND(x, at)
    }
    """
    model = Model.load(onnx.parser.parse_model(text))
    data = [samples(1, rows=n)[0] for n in range(10, 200, 5)]
    observer = MinMaxObserver()
    observe(model, as_calibration(data, model.signature), {"y": observer}, max_bytes=max_bytes)
    assert observer.range() == (min(x.min() for x in data), max(x.max() for x in data))
    assert fewest <= len(opened) <= most


def test_no_samples_not_finite_and_unknown_tensors_are_errors():
    signature = net().signature
    with pytest.raises(CalibrationError, match="no calibration data"):
        observe(net(), as_calibration([], signature), {"h": MinMaxObserver()})
    bad = [*samples(1), np.full((1, 3), np.nan, np.float32)]
    with pytest.raises(CalibrationError, match="not finite") as caught:
        observe(net(), as_calibration(bad, signature), {"h": MinMaxObserver()})
    assert caught.value.where == "sample 1, input 'x'"
    huge = [np.full((1, 3), 3e38, np.float32)]
    with pytest.raises(CalibrationError, match="not finite") as caught:
        observe(net(), as_calibration(huge, signature), {"k": MinMaxObserver()})
    assert caught.value.where == "sample 0, tensor 'k'"
    with pytest.raises(TransformError, match="no such tensor"):
        observe(net(), as_calibration(samples(), signature), {"nowhere": MinMaxObserver()})


def test_what_is_not_representative_is_said():
    signature = net().signature

    def notes(data):
        return " ".join(observe(net(), as_calibration(data, signature), {"h": MinMaxObserver()}).notes)

    assert notes(samples(5)) == ""
    assert "only one sample" in notes(samples(1))
    assert "all samples were the same" in notes(samples(1) * 3)
    negative = notes([-np.abs(x) for x in samples()])
    assert "tensor 'h' was zero throughout" in negative
    assert "input 'x' was constant" in notes([np.full((1, 3), v, np.float32) for v in (1, 2)])
