"""A backend whose models compute y = factor * x and have the fault that they are asked for.

`fault` is what goes wrong, and `after` how many inferences go well before: what staging cannot see, a soak
must.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence

import attrs
import numpy as np

from edgeinfer.artifact.payload import Payload
from edgeinfer.backends.options import options_from
from edgeinfer.backends.protocol import Capabilities, CompileOptions, DeviceInfo, LoadOptions

__all__ = ["FaultyBackend"]

FAULTS = (
    "",
    "slow",
    "wrong",
    "crash",
    "crash_at_load",
    "hang",
    "hang_at_load",
    "hang_in_application",
    "leak",
    "huge",
    "error",
    "fails_to_load",
)


@attrs.frozen(kw_only=True)
class FaultyOptions:
    factor: float = 1.0
    fault: str = attrs.field(default="", validator=attrs.validators.in_(FAULTS))
    after: int = 0


class FaultyBackend:
    name = "faulty"
    api_version = 1

    def capabilities(self) -> Capabilities:
        return Capabilities(available=True, version="1.0", devices=(DeviceInfo(name="CPU"),))

    def compile(self, model: object, options: CompileOptions, /) -> Payload:
        chosen = options_from(FaultyOptions, options.options, backend=self.name)
        return Payload(
            entry="faulty.json",
            files={"faulty.json": json.dumps(attrs.asdict(chosen)).encode()},
            device="CPU",
        )

    def load(self, payload: Payload, options: LoadOptions, /) -> FaultyRunner:
        chosen = FaultyOptions(**json.loads(payload.read()))
        if chosen.fault == "crash_at_load":
            os.kill(os.getpid(), signal.SIGSEGV)
        if chosen.fault == "hang_at_load" or (
            chosen.fault == "hang_in_application"
            and threading.current_thread() is not threading.main_thread()
        ):
            time.sleep(3600)
        if chosen.fault == "fails_to_load":
            raise RuntimeError("no such kernel")
        return FaultyRunner(chosen)


class FaultyRunner:
    thread_safe = True

    def __init__(self, options: FaultyOptions) -> None:
        self._options = options
        self._runs = 0
        self._kept: list[np.ndarray] = []

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Sequence[np.ndarray]:
        self._runs += 1
        answer = feeds["x"] * np.float32(self._options.factor)
        return [answer if self._runs <= self._options.after else self._faulty(answer)]

    def _faulty(self, answer: np.ndarray) -> np.ndarray:
        fault = self._options.fault
        if fault == "slow":
            time.sleep(0.03)
        elif fault == "wrong":
            return answer + 1
        elif fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif fault == "hang":
            time.sleep(3600)
        elif fault == "leak":
            self._kept.append(np.ones(1 << 17))  # 1 MB
        elif fault == "huge":
            self._kept.append(np.ones(1 << 24))  # 134 MB
        elif fault == "error":
            raise RuntimeError("the accelerator was reset")
        return answer

    def close(self) -> None:
        self._kept.clear()
