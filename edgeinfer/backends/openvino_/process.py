"""OpenVINO in this process: without its telemetry, and not in a fork of a process that used it."""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import Any, final

from edgeinfer.errors import BackendUnavailableError
from edgeinfer.forking import abandon_in_children, keep_forever

__all__ = ["core", "vendor_module"]

_log = logging.getLogger(__name__)
_TELEMETRY = "openvino_telemetry"


def vendor_module() -> Any:
    """Import OpenVINO without its telemetry, which sends an event when it is imported.

    OpenVINO has a stand-in for a telemetry package that is not installed; so for the time of its import it is
    not.
    """
    if "openvino" not in sys.modules:
        before = sys.modules.get(_TELEMETRY)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what Python takes for "not installed"
        try:
            import openvino
        finally:
            del sys.modules[_TELEMETRY]
            if before is not None:
                sys.modules[_TELEMETRY] = before
    import openvino

    telemetry = getattr(sys.modules.get("openvino.tools.ovc"), "telemetry", None)
    if getattr(telemetry, "consent", False):
        telemetry.consent = False  # type: ignore[union-attr]
        _log.warning(
            "openvino was imported before edgeinfer used it, with its telemetry on. It is off from now on, "
            "but may have sent something. Uninstall openvino-telemetry, or do not import openvino before."
        )
    return openvino


def core() -> Any:
    """Return OpenVINO's core.

    Raises:
        BackendUnavailableError: This process is a fork of one that used it; there it would hang.
    """
    return _process().core


@final
class _Process:
    def __init__(self) -> None:
        # oneDNN keeps 1,024 kernels for the entire process, which took 500 MB where each call had another
        # shape; a graph keeps those of its last shapes itself.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
        self._core = vendor_module().Core()
        self._forked = False
        abandon_in_children(self)

    @property
    def core(self) -> Any:
        if self._forked:
            raise BackendUnavailableError(
                "OpenVINO does not work in a fork of a process that used it.",
                hint="Start children with multiprocessing's 'spawn' or 'forkserver', or use OpenVINO only in "
                "them.",
            )
        return self._core

    def _after_fork(self) -> None:
        self._forked = True
        keep_forever(self._core)


@functools.cache
def _process() -> _Process:
    return _Process()
