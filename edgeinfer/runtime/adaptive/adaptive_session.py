"""`AdaptiveSession`: of several variants of one model, the best that keeps the deadline here and now."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from types import TracebackType
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.display import Table
from edgeinfer.errors import EdgeInferError, InputError, SessionClosedError
from edgeinfer.runtime.adaptive.conditions import Conditions, read_conditions, trouble
from edgeinfer.runtime.adaptive.controller import Controller, Policy, Switch
from edgeinfer.runtime.adaptive.variant import common_signature, idle_ms, variants_of
from edgeinfer.runtime.deadlines import report_unraisable

__all__ = ["AdaptiveSession"]

_KEPT_SWITCHES = 1000
# So many good readings in a row end a trouble.
_CALM = 5


@final
class AdaptiveSession:
    """Runs the best variant that keeps the deadline; a context manager. Several threads may use it.

    All variants are loaded at the start, so that a switch costs nothing. When memory runs out, the better
    ones are closed, and loaded again when it is back. A switch never fails a request: a variant that fails to
    run is not used again, and its request runs in another one.

    Args:
        variants: Artifacts, directories or open sessions of one signature, the best first, by name or in
            order.
        deadline_ms: How long a request may take.
        feeds: What a variant's latency on an idle machine is taken from, as for `benchmark`; None: made up.
        shapes: As for `benchmark`.
        policy: The numbers of the rules (`edgeinfer.runtime.adaptive.controller`).
        on_switch: Called with a `Switch` for each change; what it raises goes to `sys.unraisablehook`.
        watch_s: How often to look at memory and temperatures, in seconds; None: never.
        options: Load options of the backend, for all variants that are not open sessions.
        conditions: Reads the state of the machine.

    Raises:
        OptionsError: There is no variant, or `deadline_ms` is no number above 0.
        InputError: The variants differ in their inputs or outputs.
        ArtifactError: As for `load`.
    """

    def __init__(
        self,
        variants: Mapping[str, Any] | Sequence[Any],
        *,
        deadline_ms: float,
        feeds: Any = None,
        shapes: Any = None,
        policy: Policy | None = None,
        on_switch: Callable[[Switch], object] | None = None,
        watch_s: float | None = 2.0,
        options: object = None,
        conditions: Callable[[], Conditions] = read_conditions,
    ) -> None:
        self._variants = variants_of(variants, options)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._on_switch = on_switch
        self._conditions = conditions
        self._trouble, self._calm = "", 0
        self.switches: deque[Switch] = deque(maxlen=_KEPT_SWITCHES)
        self._latencies: deque[float] = deque(maxlen=10_000)
        try:
            sessions = [variant.load() for variant in self._variants]
            self._signature = common_signature(self._variants, sessions)
            self._controller = Controller(idle_ms(sessions, feeds, shapes), deadline_ms, policy)
        except BaseException:
            self._unload()
            raise
        self._watcher: threading.Thread | None = None
        if watch_s is not None:
            self._watcher = threading.Thread(
                target=self._watch, args=(watch_s,), name="edgeinfer-adaptive", daemon=True
            )
            self._watcher.start()

    @property
    def signature(self) -> Signature:
        """The inputs and outputs, those of all variants."""
        return self._signature

    @property
    def current(self) -> str:
        """The name of the variant that runs now."""
        return self._variants[self._controller.level].name

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    @property
    def deadline_misses(self) -> int:
        """How many requests took longer than the deadline."""
        return self._controller.misses

    @property
    def slow_down(self) -> float:
        """How many times as long as on an idle machine requests take now (the 99th percentile)."""
        with self._lock:
            return self._controller.slow_down()

    @property
    def latencies_ms(self) -> np.ndarray:
        """The last latencies in ms, oldest first."""
        return np.array(self._latencies, np.float64)

    def infer(self, inputs: Mapping[str, np.ndarray] | np.ndarray, /) -> dict[str, np.ndarray]:
        """Run once, in the present variant; see `Session.infer`.

        Raises:
            InputError: The inputs do not fit the signature.
            SessionError: No variant could run it: the error of the last one.
            SessionClosedError: The session is closed.
        """
        while True:
            if self._closed.is_set():
                raise SessionClosedError("The session is closed.")
            level = self._controller.level
            started = perf_counter()
            try:
                with self._variants[level].use() as session:
                    outputs = session.infer(inputs)
            except InputError:
                raise
            except EdgeInferError as error:
                if not self._give_up(level, error):
                    raise
                continue
            latency_ms = 1e3 * (perf_counter() - started)
            self._latencies.append(latency_ms)
            with self._lock:
                switch = self._controller.observe(level, latency_ms, may_rise=not self._trouble)
            self._tell(switch)
            return outputs

    def _give_up(self, level: int, error: EdgeInferError) -> bool:
        """Never use a variant again; return whether another one is left."""
        with self._lock:
            switch = self._controller.exclude(level, f"it failed: {error.what}")
            left = any(self._controller.usable)
        self._tell(switch)
        return left

    def _tell(self, switch: Switch | None) -> None:
        if switch is None:
            return
        self.switches.append(switch)
        if self._on_switch is not None:
            try:
                self._on_switch(switch)
            except Exception as error:
                report_unraisable(error, "on_switch of an AdaptiveSession", self._on_switch)

    def _watch(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            self.look()

    def look(self) -> None:
        """Look at the machine's memory and temperatures once, and act; done every `watch_s` seconds."""
        kind, finding = trouble(self._conditions())
        self._calm = 0 if kind else self._calm + 1
        switch = None
        with self._lock:
            if kind:
                switch = self._controller.step_down(finding)
                self._trouble = kind
            elif self._calm >= _CALM:
                self._trouble = ""
            level = self._controller.level
        self._tell(switch)
        if kind == "memory":
            for index, variant in enumerate(self._variants[:level]):
                if variant.loaded and variant.owned:
                    with self._lock:
                        self._controller.usable[index] = False
                    variant.unload()
        elif not self._trouble:
            self._load_again()

    def _load_again(self) -> None:
        """Load what was closed for memory, the nearest variant first, one a look."""
        for index in reversed(range(len(self._variants))):
            variant = self._variants[index]
            if variant.loaded or self._closed.is_set():
                continue
            try:
                variant.load()
            except EdgeInferError as error:
                self._tell_failed_load(index, error)
                continue
            with self._lock:
                self._controller.usable[index] = True
            return

    def _tell_failed_load(self, index: int, error: EdgeInferError) -> None:
        level, requests = self._controller.level, self._controller.requests
        reason = f"{self._variants[index].name} could not be loaded again: {error.what}"
        self._tell(Switch(request=requests, before=level, after=level, reason=reason))

    def close(self) -> None:
        """Close all variants. Closing twice is allowed."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
        self._unload()

    def _unload(self) -> None:
        for variant in self._variants:
            variant.unload()

    def to_dict(self) -> dict[str, Any]:
        """Return the present state as JSON-compatible values."""
        control = self._controller
        return {
            "current": self.current,
            "deadline_ms": control.deadline_ms,
            "requests": control.requests,
            "misses": control.misses,
            "slow_down": self.slow_down,
            "variants": [
                {"name": variant.name, "loaded": variant.loaded, "idle_ms": control.idle_ms(level)}
                for level, variant in enumerate(self._variants)
            ],
            "switches": [attrs.asdict(switch) for switch in self.switches],
        }

    def table(self) -> Table:
        """Return one row a variant."""
        control = self._controller
        rows = [
            (
                variant.name,
                "runs now" if level == control.level else "" if variant.loaded else "not loaded",
                f"{control.idle_ms(level):.3f} ms",
                f"{control.predicted_p99_ms(level):.3f} ms",
            )
            for level, variant in enumerate(self._variants)
        ]
        missed = f"{control.misses} of {control.requests} missed {control.deadline_ms:g} ms"
        return Table(
            title="Adaptive session",
            columns=("variant", "", "idle", "predicted p99"),
            rows=rows,
            footer=f"{missed}; {len(self.switches)} switches",
        )

    def __enter__(self) -> AdaptiveSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()
