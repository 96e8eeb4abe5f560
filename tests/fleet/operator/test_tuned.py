"""From budgets to one release: a model is tuned for a class of devices, and published."""

from __future__ import annotations

import pytest

from edgeinfer.budget import Budget
from edgeinfer.demo import load_digits, model_path
from edgeinfer.errors import OptionsError
from edgeinfer.fleet.operator.opening import open_fleet


def test_a_model_is_tuned_and_published_with_its_budget(tmp_path):
    digits = load_digits()
    feeds = [{"images": image[None]} for image in digits.calibration[:8]]
    budget = Budget(latency_p50_ms=1000.0, min_sqnr_db=5.0)
    with open_fleet(tmp_path / "fleet", passphrase=lambda _: "secret") as fleet:
        tuned = fleet.publish_tuned(
            "digits",
            model_path(),
            budgets={"camera": budget},
            targets={"camera": "onnxruntime:CPU"},
            calibration=feeds,
            options={"threads": 1, "allow_spinning": False},
            minutes=0.01,
            progress=False,
            interface="digits/1",
        )
        best = tuned.results["camera"].best
        assert best.candidate.options["threads"] == 1
        assert best.latency_p50_ms <= 1000.0
        [variant] = tuned.release.variants
        assert variant.budget == budget
        assert variant.needs.device_class == ("camera",)
        assert tuned.release.interface == "digits/1"
        assert "camera" in str(tuned)


def test_a_class_without_a_target_is_refused(tmp_path):
    with open_fleet(tmp_path / "fleet", passphrase=lambda _: "secret") as fleet:
        for budgets in ({"camera": Budget()}, {}):
            with pytest.raises(OptionsError, match="class"):
                fleet.publish_tuned("digits", model_path(), budgets=budgets, targets={}, calibration=[])
