"""What TensorRT keeps from one run to the next: timings of builds, kernels of TensorRT-RTX.

What is kept carries its SHA-256 in front: a file that a disk or another program changed never reaches the
vendor's reader, which may trust it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeinfer.atomic import write_file
from edgeinfer.backends.tensorrt_.cuda import Gpu
from edgeinfer.backends.tensorrt_.flavours import Flavour
from edgeinfer.backends.tensorrt_.options import TensorRTOptions

__all__ = ["RuntimeCache", "timing_cache"]

_DIGEST_SIZE = hashlib.sha256().digest_size
# Without a folder timings are kept while the process lives: a search for the best precision builds many
# engines that are nearly alike. By flavour, GPU and compute capability.
_KEPT: dict[tuple[str, str, str], bytes] = {}


@contextlib.contextmanager
def timing_cache(
    flavour: Flavour, config: Any, gpu: Gpu | None, options: TensorRTOptions, cache_dir: Path | None
) -> Iterator[list[str]]:
    """Start from the timings of earlier builds with this version on such a GPU, and keep the new ones.

    They are kept in `cache_dir`; where that is None, in this process.

    Yields:
        What must be said about it; more may come when the block ends.
    """
    notes: list[str] = []
    if gpu is None or not options.timing_cache or not flavour.has("timing_cache"):
        yield notes
        return
    key = (str(flavour), gpu.name, gpu.compute_capability)
    name = f"{flavour.name}-{flavour.version}-sm{gpu.compute_capability}.timing"
    known = _KEPT.get(key, b"") if cache_dir is None else _read(cache_dir / name, notes)
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        notes.append(f"the timing cache {name} does not fit this TensorRT and starts empty")
        if not config.set_timing_cache(config.create_timing_cache(b""), False):
            notes.append("TensorRT took no timing cache at all: every build times all kernels")
    yield notes
    made = config.get_timing_cache()
    if made is not None and cache_dir is None:
        _KEPT[key] = bytes(made.serialize())
    elif made is not None and cache_dir is not None:
        _write(cache_dir / name, bytes(made.serialize()), notes)


class RuntimeCache:
    """TensorRT-RTX's kernels for this GPU, in a file; `config` is what contexts are made with."""

    def __init__(self, engine: Any, path: str) -> None:
        self.notes: list[str] = []
        self._path = Path(path)
        self.config = engine.create_runtime_config()
        self._cache = self.config.create_runtime_cache()
        known = _read(self._path, self.notes)
        if known and not self._cache.deserialize(known):
            self.notes.append(f"the runtime cache {path} does not fit this TensorRT and starts empty")
        if not self.config.set_runtime_cache(self._cache):
            self.notes.append("TensorRT-RTX did not take the runtime cache: kernels are made again")

    def save(self) -> None:
        """Keep what there is now."""
        _write(self._path, bytes(self._cache.serialize()), self.notes)


def _read(path: Path, notes: list[str]) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        notes.append(f"the cache {path} cannot be read ({error.strerror}) and starts empty")
        return b""
    digest, kept = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    if hashlib.sha256(kept).digest() != digest:
        notes.append(f"the cache {path.name} is damaged and starts empty")
        return b""
    return kept


def _write(path: Path, content: bytes, notes: list[str]) -> None:
    """Keep a cache; an engine that is built, or a session that ends, is not lost because that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        notes.append(f"the cache {path} could not be kept: {error.strerror or error}")
