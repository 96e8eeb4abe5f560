"""CPU quotas of containers, read from made-up trees and, where there is a controller, from a real one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgeinfer.cpu_quota
from edgeinfer.cpu_quota import cpu_quota, usable_cpus

V1 = "31 23 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "31 23 0:29 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root: Path, mountinfo: str, cgroup: str, **files: str) -> Path:
    """Write a file system with `cpu.max` files; double underscores in their names are slashes."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("20 1 0:5 / / rw - ext4 /dev/sda rw\n" + mountinfo)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name("cpu.max").write_text(text)
    return root


def v1(
    root: Path, quota: str, period: str = "100000\n", *, below: str = "", top: str = "/", group: str = "/"
) -> Path:
    folder = root / "sys/fs/cgroup/cpu,cpuacct" / below
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text(period)
    if not (root / "proc").exists():
        tree(root, V1.format(top=top), f"4:memory:/x\n3:cpu,cpuacct:{group}\n0::/\n")
    return root


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("50000\n", 0.5),
        ("100000\n", 1.0),
        ("250000\n", 2.5),
        ("-1\n", None),
        ("0\n", None),
        ("", None),
        ("x", None),
    ],
)
def test_version_1(quota, expected, tmp_path):
    assert cpu_quota(v1(tmp_path, quota)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("50000 100000\n", 0.5), ("max 100000\n", None), ("300000 100000\n", 3.0), ("", None), ("50000\n", None),
     ("1 0\n", None), ("50000 100000 7\n", None)],
)  # fmt: skip
def test_version_2(text, expected, tmp_path):
    assert cpu_quota(tree(tmp_path, V2.format(top="/"), "0::/\n", max=text)) == expected


def test_the_least_quota_of_all_groups_above_counts(tmp_path):
    root = tree(
        tmp_path, V2.format(top="/"), "0::/a/b/c\n", a__max="150000 100000", a__b__max="400000 100000",
        a__b__c__max="max 100000", other__max="1000 100000",
    )  # fmt: skip
    assert cpu_quota(root) == 1.5


def test_a_container_sees_its_own_group_as_the_top(tmp_path):
    """Version 1 without a namespace: the group's path is the host's, what is mounted is the group."""
    root = v1(tmp_path, "70000\n", top="/docker/abc", group="/docker/abc")
    assert cpu_quota(root) == 0.7
    v1(root, "20000\n", below="inner")
    (root / "proc/self/cgroup").write_text("3:cpu,cpuacct:/docker/abc/inner\n")
    assert cpu_quota(root) == 0.2


@pytest.mark.parametrize("group", ["/../outside", "/elsewhere"])
def test_a_group_outside_of_what_is_mounted(group, tmp_path):
    root = tree(tmp_path, V2.format(top="/inside"), f"0::{group}\n", max="50000 100000")
    (root / "sys/fs/outside").mkdir()
    (root / "sys/fs/outside/cpu.max").write_text("1 100000")
    assert cpu_quota(root) == 0.5


def test_both_versions_at_once(tmp_path):
    root = v1(tmp_path, "150000\n")
    (root / "proc/self/mountinfo").write_text(
        V1.format(top="/") + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    assert cpu_quota(root) == 1.5


def test_paths_with_spaces(tmp_path):
    root = tree(tmp_path, V2.format(top="/").replace("/sys/fs/cgroup", r"/sys/fs/c\040g"), "0::/\n")
    (root / "sys/fs/c g").mkdir(parents=True)
    (root / "sys/fs/c g/cpu.max").write_text("50000 100000")
    assert cpu_quota(root) == 0.5


@pytest.mark.parametrize("text", ["", "\n", "garbage", "1 2 3", "0::", "::::", "0::/../../.."])
def test_files_that_say_nothing(text, tmp_path):
    assert cpu_quota(tmp_path) is None
    root = tree(tmp_path, text, text)
    assert cpu_quota(root) is None
    assert usable_cpus(root) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cores", "expected"), [(0.1, 4, 1), (0.5, 4, 1), (1.5, 4, 2), (9.0, 4, 4), (None, 4, 4)]
)
def test_a_quota_is_rounded_up_and_held_to_the_affinity(quota, cores, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(edgeinfer.cpu_quota, "cpu_quota", lambda root: quota)
    assert usable_cpus() == expected


# Backends

SESSION = """
import os, sys
import onnx.parser
import edgeinfer as ei
net = '<ir_version: 10, opset_import: ["": 21]> g (float[4] x) => (float[4] y) { y = Add(x, x) }'
artifact = ei.compile(onnx.parser.parse_model(net), sys.argv[1])
if len(sys.argv) > 2:
    with open(sys.argv[2], "w") as tasks:
        tasks.write(str(os.getpid()))
with ei.load(artifact) as session:
    runner = session._runner
    if sys.argv[1] == "openvino":
        print(runner._engine.current().model.get_property("INFERENCE_NUM_THREADS"))
    else:
        print(runner._session.get_session_options().intra_op_num_threads)
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("quota", "affinity", "expected"),
    [(0.5, 4, 1), (2.5, 4, 3), (2.5, 2, 2), (8.0, 4, None), (None, 4, None)],
)
def test_backends_follow_the_quota(backend, quota, affinity, expected, monkeypatch):
    from edgeinfer.backends.onnxruntime_ import backend as onnxruntime_
    from edgeinfer.backends.openvino_ import options as openvino_options

    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(edgeinfer.cpu_quota, "cpu_quota", lambda root=None: quota)
    monkeypatch.setattr(openvino_options, "cpu_quota", lambda: quota)
    if backend == "onnxruntime":
        assert (onnxruntime_._allowed_threads() or None) == expected
        return
    for device in ("CPU", "AUTO", "HETERO:GPU,CPU"):
        config = openvino_options.OpenVINOOptions().config(device)
        # OpenVINO itself sees the affinity, and not the quota.
        assert config.get("INFERENCE_NUM_THREADS") == (None if (quota, affinity) == (2.5, 2) else expected)
    assert "INFERENCE_NUM_THREADS" not in openvino_options.OpenVINOOptions().config("GPU.0")
    assert openvino_options.OpenVINOOptions(threads=3).config("CPU")["INFERENCE_NUM_THREADS"] == 3


@contextlib.contextmanager
def real_group() -> Iterator[Path]:
    """Make a group with a quota of half a CPU; give the file that takes processes."""
    first = Path("/sys/fs/cgroup/cpu")
    folder = (first if first.is_dir() else first.parent) / f"edgeinfer-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        try:
            if (folder / "cpu.cfs_quota_us").exists():
                (folder / "cpu.cfs_quota_us").write_text("50000")
            else:
                (folder / "cpu.max").write_text("50000 100000")
        except OSError as error:
            pytest.skip(f"no CPU controller: {error}")
        yield folder / "cgroup.procs"
    finally:
        folder.rmdir()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_real_quota(backend):
    if (os.cpu_count() or 1) < 2 or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU leaves nothing to limit")
    pytest.importorskip(backend)
    with real_group() as processes:
        command = [sys.executable, "-c", SESSION, backend, str(processes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "1\n"
