"""What a machine is, read from recordings of machines' files; and from this one."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer.devices.probe import accelerators
from edgeinfer.devices.probe.accelerators import parse_smi
from edgeinfer.devices.probe.cgroup import cpu_quota, read_cgroup
from edgeinfer.devices.probe.cpu import parse_cpuinfo, x86_level
from edgeinfer.devices.probe.jetson import parse_l4t, parse_power_modes
from edgeinfer.devices.probe.local import LocalDevice, examine, parse_limits
from edgeinfer.devices.probe.pressure import parse_meminfo, parse_pressure
from edgeinfer.devices.probe.tree import Tree, cores_of

RECORDINGS = Path(__file__).parent / "recordings"


@pytest.fixture
def machine(tmp_path):
    """Return a function that unpacks a recording (`### path`, its text; `### path -> link`)."""

    def unpack(name: str) -> Path:
        text = (RECORDINGS / f"{name}.txt").read_text(encoding="utf-8")
        for part in text.split("### ")[1:]:
            head, _, body = part.partition("\n")
            path, arrow, target = head.partition(" -> ")
            file = tmp_path / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            if arrow:
                file.symlink_to(target)
            else:
                file.write_text(body)
        return tmp_path

    return unpack


def topics(device: LocalDevice) -> dict[str, str]:
    return {item.topic: f"{item.found}: {item.todo}" for item in device.advice()}


def test_a_jetson(machine):
    found = examine(machine("jetson-orin-nano"), "aarch64")
    assert found.board.startswith("NVIDIA Jetson Orin Nano")
    assert found.jetson.l4t == "36.4.3"
    assert found.jetson.jetpack == "6.2"
    assert found.jetson.part == "p3767-0005"
    assert found.jetson.power_mode == "MAXN_SUPER"
    assert found.jetson.power_modes == ("15W", "25W", "MAXN_SUPER")
    assert found.jetson.clocks_locked is False
    assert found.cpu.model == "6x Cortex-A78AE"
    assert found.cpu.features == {"neon", "fp16", "dotprod"}
    assert found.cpu.level is None
    assert found.cpu.max_mhz == 1728
    assert found.memory_bytes == 7802128 * 1024
    names = [(zone.name, zone.temperature_c, zone.throttles_c) for zone in found.zones]
    assert names == [
        ("cpu-thermal", 52.312, 99.0),
        ("gpu-thermal", 96.781, 99.0),
        ("tj-thermal", None, None),
    ]
    assert found.profile.name == "jetson-orin-nano-8gb@MAXN_SUPER"
    assert found.profile.main.number("int8_ops") == 33.4e12
    said = topics(found)
    assert "97 of 99 °C" in said["temperature"]
    assert "jetson_clocks" in said["clocks"]
    assert "schedutil" in said["governor"]
    assert "8 MiB" in said["locked memory"]
    assert "power mode" not in said


def test_a_jetson_in_a_lower_mode_is_told_how_to_leave_it(machine):
    root = machine("jetson-orin-nano")
    (root / "var/lib/nvpmodel/status").write_text("pmode:0000\n")
    found = examine(root, "aarch64")
    assert found.jetson.power_mode == "15W"
    assert "nvpmodel -m 2" in topics(found)["power mode"]


def test_the_series_of_jetpack_where_its_package_is_not_installed(machine):
    root = machine("jetson-orin-nano")
    (root / "var/lib/dpkg/status").unlink()
    assert examine(root, "aarch64").jetson.jetpack == "6.x"


def test_a_raspberry_pi(machine):
    found = examine(machine("raspberry-pi-5"), "aarch64")
    assert found.jetson is None
    assert found.gpus == ()
    assert found.cpu.isolated == (3,)
    assert found.cpu.features == {"neon", "fp16", "dotprod"}
    assert found.usable_cores == 4
    assert found.profile.name == "raspberry-pi-5"
    assert "ondemand" in topics(found)["governor"]
    assert "cores" not in topics(found)


def test_a_server(machine):
    found = examine(machine("x86-server"), "x86_64")
    assert found.board == "Dell Inc. PowerEdge R660"
    assert {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16"} <= found.cpu.features
    assert found.cpu.level == 4
    assert found.cpu.governors == ("powersave", "performance")
    assert len(found.cpu.cores) == 16
    assert found.cgroup.cpu_quota is None
    assert found.cgroup.memory_bytes is None
    (gpu,) = found.gpus  # the display controller of the board is none
    assert (gpu.name, gpu.vendor, gpu.driver) == ("NVIDIA L4", "NVIDIA", "580.159.04")
    assert found.limits == {"memlock_bytes": None, "rtprio": 0}
    assert found.zones[0].throttles_c is None  # -274 °C stands for "not told"
    assert found.power_profile == "balanced"
    assert found.profile.name == "nvidia-l4"
    assert "real time" in topics(found)


def test_a_container_with_a_quota(machine):
    found = examine(machine("container-v2"), "x86_64")
    assert found.cgroup.cpu_quota == 1.5
    assert found.cgroup.cores == (0, 1)
    assert found.usable_cores == 1.5
    assert found.usable_bytes == 512 << 20
    (npu,) = found.npus
    assert (npu.vendor, npu.driver) == ("Intel", "intel_vpu")
    (gpu,) = found.gpus
    assert (gpu.vendor, gpu.driver) == ("Intel", "i915")
    assert found.profile.name == "intel-n100"
    said = topics(found)
    assert "1.5 cores" in said["quota"]
    assert "38 %" in said["pressure"]


def test_a_container_of_version_1(machine):
    found = examine(machine("container-v1"), "x86_64")
    assert found.cgroup.cpu_quota == 2.5
    assert found.cgroup.memory_bytes == 2 << 30
    assert found.cgroup.cores == (2, 3, 4, 5, 8)
    assert found.usable_cores == 2.5
    assert found.profile.name == "x86-64-v3"


def test_the_tightest_limit_on_the_way_to_the_root_counts(machine):
    root = machine("x86-server")
    (root / "sys/fs/cgroup/user.slice/cpu.max").write_text("50000 100000\n")
    (root / "sys/fs/cgroup/user.slice/session-3.scope/cpu.max").write_text("400000 100000\n")
    (root / "sys/fs/cgroup/user.slice/memory.max").write_text("1000000\n")
    assert cpu_quota(Tree(root)) == 0.5
    assert read_cgroup(Tree(root)).memory_bytes == 1_000_000


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64", "riscv64", ""])
def test_an_empty_machine_is_no_error(tmp_path, architecture):
    found = examine(tmp_path, architecture)
    assert found.profile is None
    assert found.usable_cores == 1
    assert found.usable_bytes is None
    assert str(found)
    json.dumps(found.to_dict())


@pytest.mark.parametrize("name", [file.stem for file in sorted(RECORDINGS.iterdir())])
def test_recordings_are_shown(machine, name):
    architecture = "x86_64" if name.startswith(("x86", "container")) else "aarch64"
    found = examine(machine(name), architecture)
    assert found.cpu.model.split(",")[0][:10] in found._repr_html_()
    json.dumps(found.to_dict(), allow_nan=False)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_files_with_anything_in_them_are_no_error(data, tmp_path_factory):
    """A file that cannot be understood is as one that is not there."""
    root = tmp_path_factory.mktemp("machine")
    text = (RECORDINGS / "jetson-orin-nano.txt").read_text() + (RECORDINGS / "container-v2.txt").read_text()
    for part in text.split("### ")[1:]:
        head, _, body = part.partition("\n")
        if " -> " in head:
            continue
        file = root / head.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = data.draw(st.sampled_from(["same", "same", "same", "cut", "noise"]))
        content = body.encode()
        if kind == "cut":
            content = content[: data.draw(st.integers(0, len(content)))]
        elif kind == "noise":
            content = data.draw(st.binary(max_size=60))
        file.write_bytes(content)
    found = examine(root, data.draw(st.sampled_from(["aarch64", "x86_64"])))
    json.dumps(found.to_dict())
    found.table()


def test_this_machine():
    found = ei.devices.local()
    assert found.cpu.architecture == platform.machine()
    assert set(found.cpu.cores) >= os.sched_getaffinity(0)
    assert found.memory_bytes > 1 << 28
    assert 0 < found.usable_cores <= len(found.cpu.cores)
    assert found.cpu.model


def test_features_are_those_that_all_cores_have():
    text = "processor: 0\nflags: avx2 avx512f\nprocessor: 1\nflags: avx2\n"
    assert parse_cpuinfo(text)[1] == {"avx2"}


def test_levels():
    two = {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}
    three = two | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
    four = three | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
    assert [x86_level(flags) for flags in ((), two, three, four, four - two)] == [1, 2, 3, 4, 1]


@settings(deadline=None)
@given(st.sets(st.integers(0, 300)))
def test_lists_of_cores(cores):
    parts, rest = [], sorted(cores)
    while rest:
        end = next((i for i in range(1, len(rest)) if rest[i] != rest[0] + i), len(rest))
        parts.append(str(rest[0]) if end == 1 else f"{rest[0]}-{rest[end - 1]}")
        rest = rest[end:]
    assert cores_of(",".join(parts)) == tuple(sorted(cores))


def test_small_parsers():
    assert parse_l4t("# R35 (release), REVISION: 4.1, GCID: 33958178") == "35.4.1"
    assert parse_l4t("nothing") == ""
    assert parse_power_modes("< POWER_MODEL ID=3 NAME=MODE_30W >\n< PM_CONFIG DEFAULT=3 >") == (
        {3: "MODE_30W"},
        3,
    )
    assert parse_pressure("some avg10=1.25 avg60=0\nfull avg10=9") == 1.25
    assert parse_pressure("") is None
    assert parse_meminfo("MemTotal:   2 kB\nHugePages_Total:  3\nodd: x") == {
        "MemTotal": 2048,
        "HugePages_Total": 3,
    }
    assert parse_limits("Max locked memory         65536        unlimited    bytes") == {
        "memlock_bytes": 65536
    }


def test_the_tool_of_the_driver():
    text = "NVIDIA H200, 143771, 580.159.04, 9.0, 700.00, 34, Enabled, 1980\n"
    (gpu,) = parse_smi(text)
    assert gpu.memory_bytes == 143771 << 20
    assert gpu.compute_capability == "9.0"
    assert gpu.persistence is True
    assert gpu.power_limit_w == 700
    (old,) = parse_smi("Tesla K80, [N/A], 470.1, [Not Supported], [N/A], 34, Disabled, [N/A]")
    assert (old.memory_bytes, old.compute_capability, old.power_limit_w) == (None, "", None)
    assert old.persistence is False
    assert parse_smi("NVIDIA-SMI has failed because it could not communicate with the driver") == ()


class _NotSupported(Exception):
    pass


def _library(**answers):
    def refuse(*_):
        raise _NotSupported("Not Supported")

    names = ["nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCudaComputeCapability"]
    names += ["nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPersistenceMode", "nvmlSystemGetDriverVersion"]
    names += ["nvmlDeviceGetTemperature", "nvmlDeviceGetMaxClockInfo"]
    library = dict.fromkeys(names, refuse)
    library |= {"nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: 1}
    library["nvmlDeviceGetHandleByIndex"] = lambda index: index
    return SimpleNamespace(**{**library, **{name: (lambda *_, v=v: v) for name, v in answers.items()}})


def test_the_library_of_the_driver(monkeypatch):
    monkeypatch.setitem(
        sys.modules,
        "pynvml",
        _library(
            nvmlDeviceGetName=b"NVIDIA GeForce RTX 4060",
            nvmlDeviceGetMemoryInfo=SimpleNamespace(total=8 << 30),
            nvmlDeviceGetCudaComputeCapability=(8, 9),
            nvmlDeviceGetPersistenceMode=0,
            nvmlDeviceGetEnforcedPowerLimit=115_000,
            nvmlDeviceGetMaxClockInfo=3105,
        ),
    )
    (gpu,), notes = accelerators._ask()
    assert (gpu.name, gpu.compute_capability, gpu.memory_bytes) == ("NVIDIA GeForce RTX 4060", "8.9", 8 << 30)
    assert gpu.power_limit_w == 115
    assert gpu.temperature_c is None
    assert notes == ()
    device = LocalDevice(gpus=(gpu,))
    assert device.profile.name == "geforce-rtx-4060"
    assert "nvidia-smi -pm 1" in topics(device)["persistence"]
    assert "--lock-gpu-clocks=3105" in topics(device)["GPU clocks"]


def test_a_library_that_fails_is_a_note(monkeypatch):
    def fail():
        raise _NotSupported("Driver Not Loaded")

    library = _library()
    library.nvmlInit = fail
    monkeypatch.setitem(sys.modules, "pynvml", library)
    gpus, (note,) = accelerators._ask()
    assert gpus == ()
    assert "Driver Not Loaded" in note


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "geforce-rtx-4060"),
        ("NVIDIA L40S", "nvidia-l40s"),
        ("Tesla T4", "nvidia-t4"),
        ("NVIDIA A10", "nvidia-a10"),
        ("NVIDIA A100-SXM4-80GB", None),
        ("NVIDIA RTX 2000 Ada Generation", "rtx-2000-ada"),
    ],
)
def test_cards_are_recognized_by_their_entire_name(name, profile):
    found = LocalDevice(gpus=(accelerators.Gpu(name=name, vendor="NVIDIA"),)).profile
    assert (found.name if found is not None else None) == profile
