"""Selecting devices: ranking, what is exceeded and by how much, what would help, and how it is shown."""

from __future__ import annotations

import json
from xml.etree import ElementTree  # noqa: ICN001

import pytest

from edgeinfer.budget import Budget
from edgeinfer.cli import main
from edgeinfer.devices import Baseline, Scaled, estimate, profiles, select
from edgeinfer.errors import OptionsError, TargetError
from edgeinfer.estimate.estimate import Band, Estimate, Figure
from edgeinfer.estimate.roofline import roofline_ms
from edgeinfer.estimate.verdict import judge
from edgeinfer.estimate.workload import workload
from tests.estimate.nets import convolutions


def test_devices_are_ranked_by_the_limit_that_they_keep_worst():
    found = select(
        convolutions(), Budget(latency_p50_ms=0.5), candidates=["raspberry-pi-4", "jetson-orin-nano-8gb"]
    )
    assert [fit.target for fit in found] == ["jetson-orin-nano-8gb", "raspberry-pi-4"]
    ratios = [fit.verdict.ratio for fit in found]
    assert ratios == sorted(ratios, reverse=True)
    assert found.best.target == "jetson-orin-nano-8gb"
    fast, slow = found
    assert fast.fits
    assert not slow.fits
    worst = slow.verdict.worst
    assert worst.limit == "latency_p50_ms"
    assert worst.ratio == pytest.approx(0.5 / slow.estimate["latency_p50_ms"].value)
    assert f"{1 / worst.ratio:.2f}x" in slow.describe()
    assert worst.ratio_low < worst.ratio < worst.ratio_high


def test_the_remedy_keeps_the_budget_by_its_estimate():
    whole = estimate(convolutions(), "raspberry-pi-5")["latency_p50_ms"].value
    budget = Budget(latency_p50_ms=0.6 * whole)
    fit = select(convolutions(), budget, candidates=["raspberry-pi-5"])["raspberry-pi-5"]
    assert fit.verdict.broken
    assert "QuantizeInt8" in fit.remedy.change or "PruneChannels" in fit.remedy.change
    assert not budget.check(fit.remedy.estimate.values)
    assert fit.remedy.change in str(select(convolutions(), budget, candidates=["raspberry-pi-5"]).to_dict())


def test_a_power_mode_is_a_remedy():
    fit = select(convolutions(), Budget(power_w=20), candidates=["jetson-agx-orin-64gb"])[
        "jetson-agx-orin-64gb"
    ]
    assert fit.remedy.change == "power mode MODE_15W"
    assert fit.remedy.estimate["power_w"].value == 15


def test_a_change_of_which_the_limit_is_not_known_is_no_remedy():
    """MODE_50W has no clock of the CPU in the catalog, so no latency."""
    orin = "jetson-agx-orin-64gb:cpu"
    assert "latency_p50_ms" not in estimate(convolutions(), "jetson-agx-orin-64gb:cpu@MODE_50W").figures
    fit = select(convolutions(), Budget(latency_p50_ms=1e-4), candidates=[orin])[orin]
    assert fit.verdict.broken
    assert fit.remedy is None


def test_where_nothing_helps_that_is_said():
    found = select(convolutions(), Budget(disk_bytes=100), candidates=["raspberry-pi-5"])
    assert found.best is None
    assert found.fits[0].remedy is None
    assert "nothing of what was tried" in str(found)


def test_what_is_not_estimated_does_not_count_as_kept():
    found = select(
        convolutions(), Budget(peak_bytes="2 GB", max_drop=0.01), candidates=["jetson-orin-nano-8gb"]
    )
    (fit,) = found
    assert fit.verdict.unknown == ("peak_bytes",)  # accuracy is left to a measurement
    assert not fit.fits
    assert "not estimated: peak_bytes" in str(found)


def test_the_devices_own_memory_is_a_limit():
    profile = profiles()["raspberry-pi-3b-plus"]
    big = Estimate(
        model="m", target="t", figures={"peak_bytes": Figure(value=2 * profile.memory_bytes, basis="catalog")}
    )
    (check,) = judge(big, Budget(), profile.memory_bytes).broken
    assert check.limit == "device memory"


@pytest.mark.parametrize(
    ("value", "word"), [(5, "fits"), (9, "may fit"), (11, "may not fit"), (30, "does not fit")]
)
def test_the_band_decides_on_the_words(value, word):
    figure = Figure(value=value, basis="catalog", band=Band(low=0.5, high=2.0))
    found = judge(
        Estimate(model="m", target="t", figures={"latency_p50_ms": figure}), Budget(latency_p50_ms=10)
    )
    assert found.word == word


def test_every_device_whose_peak_is_known_is_a_candidate():
    found = select(convolutions(), Budget(latency_p50_ms=5))
    assert len(found) > 40
    assert not any(fit.note for fit in found)  # no legacy device
    assert "intel-core-ultra-1:npu" in {fit.target for fit in found}
    assert all(
        figure.basis in ("catalog", "counted") for fit in found for figure in fit.estimate.figures.values()
    )
    assert "no promise" in str(found)


def test_a_legacy_device_is_named_with_its_successor():
    (fit,) = select(convolutions(), Budget(latency_p50_ms=50), candidates=["intel-ncs2"])
    assert "2022.3" in fit.note
    assert "intel-core-ultra-1:npu" in fit.note


def test_measured_targets_are_candidates_with_their_own_basis():
    baseline = Baseline.of(convolutions(), {"latency_p50_ms": 3.0, "peak_bytes": 1e8}, target="openvino")
    (fit,) = select(
        convolutions(), Budget(latency_p50_ms=4), candidates=[Scaled([baseline], target="openvino")]
    )
    assert fit.estimate.basis == "scaled"
    assert fit.verdict.word == "fits"


def test_it_is_shown_as_a_picture_and_as_json():
    found = select(convolutions(), {"latency_p50_ms": 0.5}, candidates=["raspberry-pi-4", "raspberry-pi-5"])
    html = found._repr_html_()
    svg = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    names = {text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"raspberry-pi-4", "raspberry-pi-5"} <= names
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}circle"))) == 2
    values = json.loads(json.dumps(found.to_dict()))
    assert [device["target"] for device in values["devices"]] == [fit.target for fit in found]


def test_a_backend_is_no_device():
    with pytest.raises(TargetError, match="nothing to estimate"):
        select(convolutions(), Budget(latency_p50_ms=1), candidates=["onnxruntime"])
    with pytest.raises(TargetError, match="nothing to estimate"):
        estimate(convolutions(), "openvino")
    with pytest.raises(OptionsError, match="no device"):
        select(convolutions(), Budget(latency_p50_ms=1), candidates=[])


def test_what_the_catalog_does_not_know_is_said():
    found = estimate(convolutions(), "x86-64-v2")
    assert found.latency_ms is None
    assert "knows no peak" in str(found)


def test_a_roofline_is_above_its_floor_and_its_peak():
    profile = profiles()["nvidia-l4"]
    work = workload(convolutions())
    found = roofline_ms(work, profile)
    floor = len(work.kernels) * profile.main.number("kernel_floor_us") / 1e3
    assert found.latency_ms >= 0.999 * max(floor, 2e3 * work.macs / profile.main.number("tf32_flops"))
    assert roofline_ms(work.pruned(0.5), profile).latency_ms <= found.latency_ms


# The commands


@pytest.fixture
def model(tmp_path) -> str:
    path = tmp_path / "model.onnx"
    convolutions().save(path)
    return str(path)


def test_the_command_select(model, capsys):
    assert (
        main(["select", model, "--p50-ms", "1", "--memory", "1GB", "--candidate", "raspberry-pi-5", "--json"])
        == 0
    )
    values = json.loads(capsys.readouterr().out)
    assert values["budget"] == {"latency_p50_ms": 1.0, "peak_bytes": 10**9}
    assert values["devices"][0]["target"] == "raspberry-pi-5"


def test_the_command_select_needs_a_limit(model, capsys):
    assert main(["select", model]) == 2
    assert "no limit" in capsys.readouterr().err


def test_the_command_estimate(model, capsys):
    assert main(["estimate", model, "--target", "raspberry-pi-5", "--precision", "int8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "int8"
    assert main(["estimate", "--target", "raspberry-pi-5"]) == 2
    assert "no model" in capsys.readouterr().err


def test_the_command_devices(capsys):
    assert main(["devices"]) == 0
    assert "jetson-orin-nano" in capsys.readouterr().out
    assert main(["devices", "jetson-orin-nano-8gb@MAXN_SUPER", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "MAXN_SUPER"
    assert main(["devices", "onnxruntime"]) == 2
    assert "no device profile" in capsys.readouterr().err
