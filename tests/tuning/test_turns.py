"""Before candidates are timed it is waited for a machine that others do not use."""

from __future__ import annotations

from pathlib import Path

from edgeinfer.devices.probe.tree import Tree
from edgeinfer.tuning.turns import wait_for_calm


class Machine:
    """A clock, and a file that says for how long some task waited for a processor."""

    def __init__(self, root: Path, average: float, share: float, calm_after_s: float = float("inf")) -> None:
        self.now = 0.0
        self.tree = Tree(root)
        self._file = root / "proc/pressure/cpu"
        self._file.parent.mkdir(parents=True)
        self._average, self._share, self._calm_after = average, share, calm_after_s
        self._waited_us = 0.0
        self._write()

    def sleep(self, seconds: float) -> None:
        if self.now < self._calm_after:
            self._waited_us += 1e6 * seconds * self._share
        self.now += seconds
        self._write()

    def wait(self, most_s: float) -> tuple[float | None, float]:
        return wait_for_calm(self.tree, most_s=most_s, clock=lambda: self.now, sleep=self.sleep)

    def _write(self) -> None:
        text = f"some avg10={self._average:.2f} avg60=0.00 avg300=0.00 total={self._waited_us:.0f}\n"
        self._file.write_text(f"{text}full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")


def test_a_calm_machine_is_not_waited_for(tmp_path):
    assert Machine(tmp_path, average=2.0, share=0.0).wait(20) == (2.0, 0.0)


def test_what_the_run_itself_computed_before_is_not_waited_for(tmp_path):
    pressure, waited = Machine(tmp_path, average=60.0, share=0.0).wait(20)
    assert pressure == 0.0
    assert waited <= 1.0


def test_others_are_waited_for_until_they_end_or_the_patience_does(tmp_path):
    pressure, waited = Machine(tmp_path / "a", average=60.0, share=0.5, calm_after_s=5.0).wait(20)
    assert pressure == 0.0
    assert 5.0 <= waited <= 6.5
    pressure, waited = Machine(tmp_path / "b", average=60.0, share=0.5).wait(20)
    assert pressure == 50.0
    assert 20.0 <= waited <= 21.0
    assert Machine(tmp_path / "c", average=60.0, share=0.5).wait(0.0)[1] <= 1.0


def test_a_kernel_that_does_not_tell_is_not_waited_for(tmp_path):
    assert wait_for_calm(Tree(tmp_path), most_s=20, clock=lambda: 0.0) == (None, 0.0)
