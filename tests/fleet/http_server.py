"""A real HTTP server of a folder, which can be told to misbehave."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FolderServer:
    """Serves a folder with ETag, Range and If-Range.

    Attributes:
        replaced: What is served instead of a file, by its path.
        endless: Paths whose content never ends.
        status: The status that a path is answered with instead.
        cut: Called with the path and the bytes that would be sent; returns how many are, before the
            connection is closed.
        ranges: Whether Range is known.
        etags: Whether there are ETags.
        requests: The paths that were asked for, with the Range header.
        sent: How many bytes of files were sent.
        connections: How many connections were made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replaced: dict[str, bytes] = {}
        self.endless: set[str] = set()
        self.status: dict[str, int] = {}
        self.cut: Callable[[str, int], int] | None = None
        self.ranges = True
        self.etags = True
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        self.connections = 0
        self.url = ""

    def content(self, path: str) -> bytes | None:
        if path in self.replaced:
            return self.replaced[path]
        file = self.folder / path
        return file.read_bytes() if file.is_file() else None


def _handler(server: FolderServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def setup(self) -> None:
            server.connections += 1
            super().setup()

        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            server.requests.append((path, self.headers.get("Range")))
            if path in server.status:
                self._empty(server.status[path])
            elif path in server.endless:
                self._endless()
            elif (data := server.content(path)) is None:
                self._empty(404)
            else:
                self._file(path, data)

        def _empty(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _endless(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            try:
                for _ in itertools.repeat(None):
                    self.wfile.write(b"{" * 65536)
                    server.sent += 65536
            except OSError:
                pass

        def _file(self, path: str, data: bytes) -> None:
            etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            match = re.match(r"bytes=(\d+)-\Z", self.headers.get("Range", ""))
            start, total = 0, len(data)
            condition = self.headers.get("If-Range")
            if match and server.ranges and condition in (None, etag):
                start = int(match[1])
                if start >= total:
                    self._empty(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if server.etags:
                self.send_header("ETag", etag)
            self.send_header("Content-Length", str(total - start))
            self.end_headers()
            body = data[start:]
            if server.cut is not None:
                count = server.cut(path, len(body))
                if count < len(body):
                    self.close_connection = True
                body = body[:count]
            try:
                self.wfile.write(body)
                server.sent += len(body)
            except OSError:
                self.close_connection = True

    return Handler


@contextmanager
def serving(folder: Path) -> Iterator[FolderServer]:
    """Serve a folder at a free port of this machine."""
    server = FolderServer(folder)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
