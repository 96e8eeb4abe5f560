"""Files of the repository: documents, metadata, releases and blobs, with ETag and Range."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from edgeinfer.fleet.device.documents import sha256
from edgeinfer.fleet.device.identity import DEVICE_NAME
from edgeinfer.fleet.operator.storage import FolderStorage, Storage

__all__ = ["Files"]

_SEGMENT = re.compile(r"[A-Za-z0-9_+~-][A-Za-z0-9._+~-]*\Z")
_FOREVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"  # may be kept, and is asked for with its ETag
_NUMBERED = re.compile(r"\d+\.")


@final
class Files:
    """The files of a repository.

    Blobs are sent from a folder as they are asked for, in ranges. What is not in a folder is read for each
    request: devices should get an object store's own URL for that.

    Args:
        storage: The repository's.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._folder = storage.folder if isinstance(storage, FolderStorage) else None

    async def desired(self, request: Request) -> Response:
        """GET /desired/DEVICE.json."""
        name = request.path_params["name"]
        device = name.removesuffix(".json")
        if device == name or not DEVICE_NAME.match(device):
            return Response(status_code=404)
        return await self._small(request, f"desired/{name}", _ASK_AGAIN)

    async def metadata(self, request: Request) -> Response:
        """GET /metadata/FILE."""
        name = request.path_params["path"]
        if not _is_plain(name):
            return Response(status_code=404)
        lasts = _FOREVER if _NUMBERED.match(name) else _ASK_AGAIN
        return await self._small(request, f"metadata/{name}", lasts)

    async def target(self, request: Request) -> Response:
        """GET /targets/PATH."""
        path = request.path_params["path"]
        return await self._small(request, f"targets/{path}", _FOREVER) if _is_plain(path) else _missing()

    async def blob(self, request: Request) -> Response:
        """GET /blobs/PATH, with Range and If-Range."""
        path = request.path_params["path"]
        if not _is_plain(path):
            return _missing()
        etag = f'"{path.rpartition("/")[2]}"'  # its name is its digest
        if _matches(request, etag):
            return Response(status_code=304, headers={"ETag": etag})
        headers = {"ETag": etag, "Cache-Control": _FOREVER}
        if self._folder is None:
            return await self._small(request, f"blobs/{path}", _FOREVER)
        file = self._folder / "blobs" / path
        if not await run_in_threadpool(file.is_file):
            return _missing()
        return FileResponse(file, headers=headers, media_type="application/octet-stream")

    async def _small(self, request: Request, path: str, lasts: str) -> Response:
        try:
            data, etag = self._read(path) if self._folder else await run_in_threadpool(self._read, path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return _missing()
        headers = {"ETag": etag, "Cache-Control": lasts}
        if _matches(request, etag):
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type="application/octet-stream")

    def _read(self, path: str) -> tuple[bytes, str]:
        if self._folder is None:
            data = self._storage.read(path)
            return data, f'"{sha256(data)}"'
        status = (self._folder / path).stat()
        return _kept(self._folder / path, status.st_mtime_ns, status.st_ino, status.st_size)


@functools.lru_cache(maxsize=20_000)  # documents are small; most polls find the same again
def _kept(path: Path, *_: int) -> tuple[bytes, str]:
    data = path.read_bytes()
    return data, f'"{sha256(data)}"'


def _is_plain(path: str) -> bool:
    return all(_SEGMENT.match(part) for part in path.split("/"))


def _matches(request: Request, etag: str) -> bool:
    asked = request.headers.get("if-none-match", "")
    return asked == "*" or etag in (part.strip().removeprefix("W/") for part in asked.split(","))


def _missing() -> Response:
    return Response(status_code=404)
