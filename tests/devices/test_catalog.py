"""The catalog of device profiles: what is in it, where its figures are from, and how others add to it."""

from __future__ import annotations

import sys

import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.devices import catalog
from edgeinfer.errors import DeviceError, TargetError

NAMES_OF_BEFORE = [
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-agx-orin",
    "intel-core-ultra",
    "intel-core-ultra-npu",
    "intel-core-ultra-gpu",
    "x86-vnni",
    "raspberry-pi-5",
]
MODEL = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["": 17]> g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }'
)


@pytest.fixture(autouse=True)
def _nothing_of_this_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nothing"))
    monkeypatch.delenv(catalog.VARIABLE, raising=False)
    monkeypatch.setattr(catalog, "_registered", [])


@pytest.mark.parametrize("name", NAMES_OF_BEFORE)
def test_names_of_before_still_work(name):
    target = ei.Target.parse(name)
    assert str(target) == name
    assert target.profile is not None
    assert target.backend == target.profile.backend


@pytest.mark.parametrize("name", [*ei.devices.profiles(), *ei.devices.profiles().aliases])
def test_every_figure_says_where_it_is_from(name):
    profile = ei.devices.profiles()[name]
    facts = dict(profile.every_fact())
    assert facts, "a profile without a figure says nothing"
    for key, fact in facts.items():
        assert len(fact.source) > 10, f"{key} has no source"
        assert fact.how in ("seen", "derived", "measured")
        assert fact.value not in ("unknown", "", None), f"{key}: what is not known is left out"
    assert profile.main.precisions
    assert profile.backend in ("tensorrt", "openvino", "onnxruntime")
    for unit in profile.units.values():
        for precision in ("float32", "float16", "int8"):
            peak = unit.operations_s(precision)
            assert peak is None or 1e9 < peak < 1e16


def test_nothing_is_merely_recalled():
    folder = catalog.files("edgeinfer.devices").joinpath("data")
    for file in folder.iterdir():
        assert "recalled" not in file.read_text()


@pytest.mark.parametrize("name", ei.devices.profiles())
def test_sparse_is_twice_dense_and_float16_at_most_int8(name):
    for unit in ei.devices.profiles()[name].units.values():
        dense, sparse = unit.number("int8_ops"), unit.number("int8_sparse_ops")
        half = unit.number("float16_flops")
        if dense and sparse:
            assert sparse == pytest.approx(2 * dense, rel=0.01)
        if dense and half:
            assert half <= dense


def test_gpu_and_dla_are_apart_and_their_sum_is_the_vendors_figure():
    orin = ei.devices.profiles()["jetson-agx-orin-64gb"]
    gpu, dla = (orin.units[name].number("int8_sparse_ops") for name in ("gpu", "dla"))
    assert gpu + dla == pytest.approx(275e12, rel=0.005)
    low = orin.in_mode("MODE_15W")
    assert low.units["gpu"].number("int8_sparse_ops") == 14e12
    assert low.units["dla"].number("int8_sparse_ops") == 40e12
    assert low.number("power_w") == 15


def test_super_is_a_power_mode():
    plain, fast = (ei.devices.profiles()[n] for n in ("jetson-orin-nano", "jetson-orin-nano@MAXN_SUPER"))
    assert fast.module == plain.module == "jetson-orin-nano-8gb"
    assert fast.main.number("int8_ops") / plain.main.number("int8_ops") == pytest.approx(1020 / 625, rel=0.01)
    assert fast.number("bandwidth_bytes_s") == 102e9
    assert ei.devices.profiles()["jetson-orin-nano-super"].mode == "MAXN_SUPER"


def test_peaks_of_a_mode_that_are_not_known_are_left_out():
    profile = ei.devices.profiles()["jetson-orin-nano@MODE_25W"]
    assert profile.main.number("int8_ops") is None
    assert profile.main.number("cuda_cores") == 1024
    assert profile.number("power_w") == 25


@pytest.mark.parametrize(
    "name", ["jetson-orin-nano@TURBO", "intel-n100:npu", "jetson-orin-nano:", "x86-64-v9"]
)
def test_unknown_modes_units_and_devices_are_no_targets(name):
    assert name not in ei.devices.profiles()
    with pytest.raises(TargetError):
        ei.Target.parse(name)


def test_units_and_modes_say_what_there_is():
    with pytest.raises(TargetError, match="MAXN_SUPER"):
        ei.devices.profiles()["jetson-orin-nano"].in_mode("TURBO")
    with pytest.raises(TargetError, match="npu"):
        ei.devices.profiles()["intel-core-ultra"].on("dla")


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one():
    with pytest.raises(TargetError) as caught:
        ei.Target.parse("raspberry-pi5")
    assert "raspberry-pi-5" in caught.value.hint


def test_a_target_with_a_unit_and_a_mode_survives_text():
    target = ei.Target.parse("jetson-agx-orin:dla@MODE_30W")
    assert target.device == "DLA"
    assert ei.Target.parse(str(target)) == target


@pytest.mark.parametrize("name", ["ncs2", "ncs1", "intel-ncs2"])
def test_compiling_for_a_compute_stick_names_its_end_and_its_successor(name):
    assert ei.devices.profiles()[name].precisions == {"float16"}
    with pytest.raises(DeviceError) as caught:
        ei.compile(MODEL, target=name)
    text = str(caught.value)
    assert "2022.3" in text
    assert "'intel-core-ultra-1:npu'" in text
    successor = ei.devices.profiles()[ei.devices.profiles()[name].successor]
    assert "float16" in successor.precisions


FLAT = """
[my-box]
description = "The box in the hall"
backend = "onnxruntime"
precisions = ["float32", "int8"]
memory_bytes = 4e9
source = "its label"
[my-box.facts]
int8_ops = 1e12
"""


def test_a_user_adds_a_flat_profile(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(FLAT)
    found = ei.devices.register(file)["my-box"]
    assert found.main.number("int8_ops") == 1e12
    assert found.memory_bytes == 4e9
    assert {fact.source for _, fact in found.every_fact()} == {"its label"}
    assert ei.Target.parse("my-box").backend == "onnxruntime"


def test_files_are_found_by_variable_and_in_the_configuration_folder(tmp_path, monkeypatch):
    named = tmp_path / "named.toml"
    named.write_text(FLAT.replace("my-box", "named-box"))
    folder = tmp_path / "config" / "edgeinfer"
    folder.mkdir(parents=True)
    (folder / "devices.toml").write_text(FLAT)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv(catalog.VARIABLE, str(named))
    assert {"my-box", "named-box"} <= set(ei.devices.profiles())


def test_a_users_file_replaces_a_profile(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(FLAT.replace("my-box", "raspberry-pi-5"))
    assert ei.devices.register(file)["raspberry-pi-5"].description == "The box in the hall"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[a", "Expected"),
        ("a = 3", "not a table"),
        ("[a]\nbackend = 'x'", "description"),
        ("[a]\ndescription = 'b'\nbackend = 'x'\nspeed = 3", "speed"),
        ("[a]\ndescription = 'b'\nbackend = 'x'\n[a.facts]\nq = {v = 1}", "'q' needs v, src and how"),
        ("[a]\ndescription = 'b'\nbackend = 'x'\n[a.facts]\nq = {v = 1, src = 's', how = 'guessed'}", "how"),
        ("[a]\ndescription = 'b'\nunit = 'gpu'\n[a.units.cpu]\nbackend = 'x'", "gpu"),
    ],
)
def test_what_is_no_catalog_is_refused(tmp_path, text, word):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(TargetError, match="catalog of devices") as caught:
        ei.devices.register(file)
    assert word in str(caught.value)
    assert "bad.toml" in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(TargetError, match=r"no\.toml"):
        ei.devices.register(tmp_path / "no.toml")
    monkeypatch.setenv(catalog.VARIABLE, str(tmp_path / "no.toml"))
    with pytest.raises(TargetError, match=r"no\.toml"):
        ei.devices.profiles()


def test_distributions_add_profiles_and_a_broken_one_breaks_no_other(tmp_path, monkeypatch):
    for name, body in (("good", FLAT), ("broken", "[a")):
        package = tmp_path / f"plugin_{name}"
        package.mkdir()
        (package / "__init__.py").write_text(
            "from pathlib import Path\nCATALOG = Path(__file__).parent / 'devices.toml'\n"
        )
        (package / "devices.toml").write_text(body)
        info = tmp_path / f"plugin_{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[{catalog.GROUP}]\n{name} = plugin_{name}:CATALOG\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    found = ei.devices.profiles()
    assert "my-box" in found
    assert len(found.problems) == 1
    assert "plugin-broken" in found.problems[0]
    assert "plugin-broken" in found.table().footer
    with pytest.raises(TargetError, match="plugin-broken"):
        ei.Target.parse("no-such-box")


def test_profiles_are_shown():
    assert "MAXN_SUPER" in ei.devices.profiles()._repr_html_()
    html = ei.devices.profiles()["ncs2"]._repr_html_()
    assert "legacy" in html
    assert "its successor is intel-core-ultra-1:npu" in html
    assert isinstance(ei.devices.profiles()["nvidia-l4"].to_dict()["precisions"], list)
