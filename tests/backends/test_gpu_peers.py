"""The peers of the GPU benchmark copy what edgeinfer copies: every input in and every output back."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


class FakeTensor:
    """Records copies; `pinned` host memory and the rest, which is called the device's."""

    log: ClassVar[list[tuple[str, str, bool]]] = []

    def __init__(self, name: str, *, pinned: bool = False) -> None:
        self.name, self.pinned = name, pinned
        self.shape, self.dtype = (1,), "float32"

    def pin_memory(self) -> FakeTensor:
        return FakeTensor(self.name, pinned=True)

    def copy_(self, source: FakeTensor, *, non_blocking: bool = False) -> None:
        assert source.pinned != self.pinned, "a copy between the host and the device"
        kind = "in" if source.pinned else "out"
        self.log.append((kind, source.name if kind == "out" else self.name, non_blocking))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch: Any = ModuleType("torch")
    torch.nn = ModuleType("torch.nn")
    torch.nn.functional = ModuleType("torch.nn.functional")
    for name in ("relu", "max_pool2d", "avg_pool2d", "softmax", "pixel_shuffle", "pad", "conv2d"):
        setattr(torch.nn.functional, name, lambda *_, **__: None)
    torch.nn.Module = object
    torch.Tensor = FakeTensor
    torch.dtype = str
    torch.zeros = lambda shape, dtype: FakeTensor("host")
    for module in (torch, torch.nn, torch.nn.functional):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("onnx_torch", FOLDER / "onnx_torch.py")
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(made)
    return made


def test_a_round_trip_in_pytorch_copies_inputs_in_and_outputs_back(script: Any) -> None:
    inputs = [FakeTensor("a"), FakeTensor("b")]

    def step() -> list[FakeTensor]:
        FakeTensor.log.append(("run", "", True))
        return [FakeTensor("y"), FakeTensor("z")]

    FakeTensor.log.clear()
    run = script.round_trip(step, inputs)
    assert [kind for kind, *_ in FakeTensor.log] == ["run"]  # to learn the outputs' shapes
    for _ in range(2):
        FakeTensor.log.clear()
        run()
        assert FakeTensor.log == [
            ("in", "a", True),
            ("in", "b", True),
            ("run", "", True),
            ("out", "y", True),
            ("out", "z", True),
        ]
