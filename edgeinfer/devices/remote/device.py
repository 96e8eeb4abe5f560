"""`connect`: reach a device over ssh, and measure there."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

import attrs
import numpy as np

from edgeinfer import __version__
from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.decode import DecodeError, decode
from edgeinfer.artifact.manifest import Cost
from edgeinfer.devices.probe.local import LocalDevice
from edgeinfer.devices.remote.feeds_file import pack_feeds
from edgeinfer.devices.remote.messages import Blob, Message
from edgeinfer.devices.remote.ssh import Address, exchange
from edgeinfer.devices.remote.store import artifact_key
from edgeinfer.display import Table
from edgeinfer.errors import RemoteError
from edgeinfer.feeds.feeds import Feed, Feeds
from edgeinfer.feeds.shapes import Shapes
from edgeinfer.runtime.benchmark import BenchmarkReport
from edgeinfer.runtime.loadgen import SingleStream
from edgeinfer.runtime.memory import MemoryReport

__all__ = ["RemoteDevice", "connect"]

# Added to a measurement's own deadline: connecting, importing the runtime, the way back.
_AROUND_S = 60.0


@final
@attrs.frozen(kw_only=True)
class _Hello:
    version: str
    python: str
    local: LocalDevice


@final
class RemoteDevice:
    """A device that is reached over ssh. Made by `connect`; a context manager.

    Each call is one connection: nothing runs on the device between calls. Artifacts are copied once; later
    calls find them by their content.
    """

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._hello = self._ask_hello()

    @property
    def host(self) -> str:
        """Where it is: `user@host`."""
        return self._address.host

    @property
    def version(self) -> str:
        """The version of edgeinfer there."""
        return self._hello.version

    def local(self) -> LocalDevice:
        """Find out what the device is, as `devices.local()` does there, now.

        Raises:
            RemoteError: It cannot be asked.
        """
        return self._ask_hello().local

    def push(self, artifact: Artifact | str | os.PathLike[str], *, timeout_s: float | None = None) -> str:
        """Copy an artifact to the device, unless it is there already.

        Args:
            artifact: The artifact, or its directory.
            timeout_s: When to give up; None: as given to `connect`, and a second for each 100 kB.

        Returns:
            The key by which the device knows it.

        Raises:
            RemoteStorageError: There is no room for it; nothing is left of it.
            RemoteError: The connection broke, or it took too long.
        """
        opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        with tempfile.TemporaryDirectory(prefix="edgeinfer-push-") as scratch:
            folder = opened.save(Path(scratch) / "model.edge").path
            assert folder is not None
            key = artifact_key(folder)
            if self._ask({"operation": "has", "key": key}).header["has"]:
                return key
            files: dict[str, Blob] = {file.name: file for file in sorted(folder.iterdir())}
            size = sum(file.stat().st_size for file in folder.iterdir())
            limit = timeout_s if timeout_s is not None else self._timeout_s + size / 100e3
            self._ask({"operation": "put", "key": key}, files, timeout_s=limit)
        return key

    def benchmark(
        self,
        artifact: Artifact | str | os.PathLike[str],
        feeds: Any = None,
        *,
        warmup: int = 10,
        runs: int | None = None,
        seconds: float | None = None,
        bound: bool = False,
        loadgen: bool = False,
        shapes: Shapes | None = None,
        seed: int = 0,
        device: str | None = None,
        options: Mapping[str, object] | None = None,
        timeout_s: float = 300.0,
    ) -> BenchmarkReport:
        """Measure latency on the device.

        Args:
            artifact: What to measure; it is copied there first.
            feeds: As for `edgeinfer.benchmark`, as the other arguments up to `seed`.
            warmup: Runs beforehand that are not counted.
            runs: How many runs to measure.
            seconds: How long to measure.
            bound: Measure the bound mode.
            loadgen: Use MLPerf's load generator.
            shapes: For made-up feeds.
            seed: For made-up feeds.
            device: As for `load`.
            options: As for `load`, of values that JSON can hold.
            timeout_s: How long the measurement may take there.

        Raises:
            RemoteError: The connection broke, or it took too long.
            EdgeInferError: What went wrong there, as the same type as here.
        """
        arguments = {
            "warmup": warmup,
            "runs": runs,
            "seconds": seconds,
            "bound": bound,
            "loadgen": loadgen,
            "shapes": _plain_shapes(shapes),
            "seed": seed,
        }
        packed, notes = self._packed(artifact, feeds)
        task = {"what": "benchmark", "arguments": arguments, "device": device, "options": options}
        answer = self._measure(artifact, task, packed, timeout_s)
        fields = answer[0]["report"]
        single = fields.pop("single_stream")
        return BenchmarkReport(
            **{**fields, "notes": (*fields["notes"], *notes, f"on {self.host}")},
            latencies_ms=np.load(io.BytesIO(answer[1]), allow_pickle=False),
            single_stream=SingleStream(**single) if single is not None else None,
        )

    def memory(
        self,
        artifact: Artifact | str | os.PathLike[str],
        feed: Feed | None = None,
        *,
        runs: int = 5,
        shapes: Shapes | None = None,
        device: str | None = None,
        options: Mapping[str, object] | None = None,
        timeout_s: float = 300.0,
    ) -> MemoryReport:
        """Measure peak memory on the device; as `edgeinfer.measure.memory`.

        Raises:
            RemoteError: The connection broke, or it took too long.
            EdgeInferError: What went wrong there, as the same type as here.
        """
        packed, _ = self._packed(artifact, feed)
        arguments = {"runs": runs, "shapes": _plain_shapes(shapes), "timeout_s": timeout_s}
        task = {"what": "memory", "arguments": arguments, "device": device, "options": options}
        return MemoryReport(**self._measure(artifact, task, packed, timeout_s)[0]["report"])

    def check_golden(
        self,
        artifact: Artifact | str | os.PathLike[str],
        *,
        device: str | None = None,
        options: Mapping[str, object] | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        """Run the artifact's golden inputs on the device and compare; as `Session.check_golden`.

        Raises:
            GoldenMismatchError: The device computes something else.
            RemoteError: The connection broke, or it took too long.
            EdgeInferError: What else went wrong there, as the same type as here.
        """
        task = {"what": "golden", "arguments": {}, "device": device, "options": options}
        self._measure(artifact, task, None, timeout_s)

    def cost(self, artifact: Artifact | str | os.PathLike[str], feeds: Any = None) -> Cost:
        """Measure latency and memory on the device, for `Budget.check` and `Artifact.with_cost`.

        Raises:
            RemoteError: The connection broke, or it took too long.
            EdgeInferError: What else went wrong there, as the same type as here.
        """
        opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        timing = self.benchmark(opened, feeds)
        first = None if feeds is None else next(iter(Feeds.of(feeds, opened.signature)))
        peak = self.memory(opened, first).peak_bytes
        return timing.cost(peak_bytes=peak, disk_bytes=opened.disk_bytes)

    def clear(self) -> int:
        """Remove all copies from the device, and return how many there were."""
        return int(self._ask({"operation": "clear"}).header["cleared"])

    def table(self) -> Table:
        """Return what the device was when it was connected to."""
        return attrs.evolve(self._hello.local.table(), title=f"{self.host}, edgeinfer {self.version}")

    def __enter__(self) -> RemoteDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays open between calls."""

    def __repr__(self) -> str:
        return f"<RemoteDevice {self.host}, edgeinfer {self.version}>"

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def _packed(
        self, artifact: Artifact | str | os.PathLike[str], feeds: Any
    ) -> tuple[bytes | None, tuple[str, ...]]:
        if feeds is None:
            return None, ()
        opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        return pack_feeds(Feeds.of(feeds, opened.signature))

    def _measure(
        self,
        artifact: Artifact | str | os.PathLike[str],
        task: Mapping[str, Any],
        feeds: bytes | None,
        timeout_s: float,
    ) -> tuple[dict[str, Any], bytes]:
        key = self.push(artifact)
        request = {"operation": "measure", "key": key, "task": task, "timeout_s": timeout_s}
        blobs: dict[str, Blob] = {"feeds.npz": feeds} if feeds is not None else {}
        name = "latencies.npy"

        def take(message: Message) -> tuple[dict[str, Any], bytes]:
            return message.header, message.read(name) if name in message.sizes else b""

        whole = timeout_s + _AROUND_S + len(feeds or b"") / 100e3
        return exchange(self._address, self._request(request), blobs, take, timeout_s=whole)

    def _ask(
        self,
        request: Mapping[str, Any],
        blobs: Mapping[str, Blob] | None = None,
        timeout_s: float | None = None,
    ) -> Message:
        limit = timeout_s if timeout_s is not None else self._timeout_s
        return exchange(self._address, self._request(request), blobs, lambda answer: answer, timeout_s=limit)

    def _request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {**request, "folder": self._address.folder}

    def _ask_hello(self) -> _Hello:
        header = self._ask({"operation": "hello"}).header
        try:
            return decode(_Hello, header, skip_unknown=True)
        except DecodeError as error:
            raise RemoteError(
                "The device describes itself in a way that is not known here.",
                where=self.host,
                expected=f"edgeinfer {__version__}",
                found=f"edgeinfer {header.get('version', '?')}: {error}",
                hint="Install the same version of edgeinfer on both.",
            ) from error


def _plain_shapes(shapes: Shapes | None) -> dict[str, Any] | None:
    if shapes is None:
        return None
    return {
        name: int(size) if isinstance(size, int) else [int(d) for d in size] for name, size in shapes.items()
    }


def connect(
    url: str,
    *,
    python: str = "python3",
    config: str | os.PathLike[str] | None = None,
    folder: str = "",
    timeout_s: float = 60.0,
) -> RemoteDevice:
    """Reach a device over ssh, by the OpenSSH client and a device-only install of edgeinfer there.

    Login must work without a question (a key, a known host key). Nothing is installed or left running.

    Args:
        url: `ssh://user@host` or `ssh://user@host:port`.
        python: The Python of the install there.
        config: A configuration file of the ssh client; None: the user's own.
        folder: Where the device keeps copies of artifacts; empty for `~/.cache/edgeinfer/remote`.
        timeout_s: How long an answer may take, measurements aside.

    Returns:
        The device, which has answered once.

    Raises:
        OptionsError: The address is none.
        RemoteConnectionError: The device cannot be reached.
        RemoteTimeoutError: It does not answer.
        RemoteError: There is no edgeinfer under that Python, or one of another version.
    """
    address = Address.parse(
        url, python=python, config=str(config) if config is not None else None, folder=folder
    )
    return RemoteDevice(address, timeout_s=timeout_s)
