"""How often a search goes through its source, and what it fits on and judges by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgeinfer.calibration.kept_feeds import MOST_PASSES, KeptFeeds
from edgeinfer.errors import CalibrationError
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from tests.quantization.qdq_models import feeds, residual_net

FEED = {"x": np.zeros(256, np.float32)}  # 1 KiB


class Counting:
    """A source that counts how often it is gone through, and fills one buffer again and again."""

    def __init__(self, given: list[dict[str, np.ndarray]]) -> None:
        self.given = given
        self.passes = self.reads = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.passes += 1
        buffer = {name: np.empty_like(array) for name, array in self.given[0].items()}
        for feed in self.given:
            self.reads += 1
            for name, array in feed.items():
                buffer[name][...] = array
            yield buffer


@pytest.fixture(scope="module")
def net() -> Model:
    return residual_net()


@pytest.mark.parametrize(("max_bytes", "most"), [(1 << 30, 1), (1 << 18, MOST_PASSES)])
def test_a_search_goes_through_its_source_a_few_times(net, max_bytes, most):
    source = Counting(feeds(net, 40))
    quantize = QuantizeInt8(
        calibration=source, target="onnxruntime", measure=False, max_bytes=max_bytes, effort="fast"
    )
    report = quantize.apply(net).report
    assert source.passes <= most + 1  # the first feed is looked at before
    assert source.reads <= most * 40 + 1
    assert report.data["source_passes"] <= most
    assert any("fit the memory" in note for note in report.notes) == (most > 1)


def test_the_result_does_not_hang_on_a_buffer_that_is_filled_again(net):
    given = feeds(net, 12)
    options = {"target": "onnxruntime", "measure": False, "effort": "fast"}
    kept = QuantizeInt8(calibration=given, **options).apply(net).model
    assert QuantizeInt8(calibration=Counting(given), **options).apply(net).model.digest == kept.digest


def test_what_is_kept_stays_spread_over_the_source():
    kept = KeptFeeds([{"x": np.full(256, i, np.float32)} for i in range(100)], max_bytes=20 << 10)
    assert (kept.total, kept.kept_all) == (100, False)
    assert list(kept.kept) == list(range(0, 100, 8))
    assert "13 of 100" in str(kept.describe())


def test_nothing_is_fitted_on_feeds_that_are_judged_unless_they_are_few():
    many = KeptFeeds([{"x": np.full(1, i, np.float32)} for i in range(100)])
    judged, _ = many.hold_out(24)
    assert len(judged) == 24
    assert many.count == len(many.fitted) == 76
    assert not {float(feed["x"][0]) for feed in judged} & {float(feed["x"][0]) for feed in many.fitted}
    few = KeptFeeds([FEED] * 10)
    assert len(few.hold_out(24)[0]) == 10
    assert few.count == 10


def test_feeds_of_a_loop_are_judged_in_runs():
    kept = KeptFeeds([{"x": np.full(1, i, np.float32)} for i in range(100)])
    judged, starts = kept.hold_out(24, in_a_row=12)
    numbers = [int(feed["x"][0]) for feed in judged]
    assert sorted(starts) == [0, 12]
    assert numbers[:12] == list(range(numbers[0], numbers[0] + 12))
    assert numbers[12:] == list(range(numbers[12], numbers[12] + 12))


def test_no_feeds_is_an_error():
    with pytest.raises(CalibrationError, match="no samples"):
        KeptFeeds([])
