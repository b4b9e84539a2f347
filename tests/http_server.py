"""A loopback HTTP server that serves what a test gives it and fails the way the test says."""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from video import scope


@dataclass
class File:
    """One path of the server. The lists hold one entry for each answer to come, first the next."""

    body: bytes = b""
    type: str = "video/mp4"
    etag: str | None = ""
    """ "": made from the body; None: the header is not sent."""
    modified: str | None = None
    """Last-Modified."""
    ranges: bool = True
    """Answer Range requests by 206."""
    obeys_if_range: bool = True
    """False: answers 206 though If-Range names another version, as some servers do."""
    length: int | None = None
    """Content-Length to claim instead of the true one."""
    headers: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    """Answer by this status, with a short text; 0: answer properly."""
    cuts: list[int] = field(default_factory=list)
    """Close the connection after so many bytes of the body."""
    stalls: list[int] = field(default_factory=list)
    """Fall silent after so many bytes of the body, until the server is closed."""


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    path: str
    range: str | None
    headers: dict[str, str]
    status: int


class Server:
    """Running from construction to `close`. `files` may change at any time."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.asked: list[Asked] = []
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = _Quiet(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def add(self, path: str, file: File | bytes) -> str:
        """Serve `file` at `path`; returns its URL."""
        self.files[path] = File(file) if isinstance(file, bytes) else file
        return f"http://{self.host}{path}"

    def ranges(self, path: str) -> list[str | None]:
        """The Range headers of the requests for `path`, in order."""
        return [asked.range for asked in self.asked if asked.path == path]

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Server

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        file = self.site.files.get(path)
        status = 404 if file is None else file.statuses.pop(0) if file.statuses else 0
        if file is None or status:
            self._answer(status, b"no", {"Content-Type": "text/plain", **(file.headers if file else {})})
            return
        body, headers = file.body, {"Content-Type": file.type, **file.headers}
        etag = f'"{hashlib.sha256(body).hexdigest()[:12]}"' if file.etag == "" else file.etag
        if etag is not None:
            headers["ETag"] = etag
        if file.modified is not None:
            headers["Last-Modified"] = file.modified
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        fresh = condition is None or condition in (etag, file.modified) or not file.obeys_if_range
        status = 200
        if wanted and file.ranges and fresh:
            start = int(wanted[1])
            if start >= len(body):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
            status, whole = 206, len(body)
            body = body[start : int(wanted[2]) + 1 if wanted[2] else None]
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{whole}"
        self._answer(status, body, headers, file)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], file: File | None = None) -> None:
        self.site.asked.append(
            Asked(self.path.partition("?")[0], self.headers.get("Range"), dict(self.headers), status)
        )
        length = file.length if file is not None and file.length is not None else len(body)
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        cut = file.cuts.pop(0) if file is not None and file.cuts else None
        stall = file.stalls.pop(0) if file is not None and file.stalls else None
        self.wfile.write(body[: cut if cut is not None else stall])
        if stall is not None:
            self.wfile.flush()
            self.site.closing.wait(60)
        if cut is not None or stall is not None or length != len(body):
            self.close_connection = True


def given_up(function: Callable[..., object], *args: object) -> object:
    """Run `function` in a slot whose item has been given up."""
    slot = scope.Slot()
    slot.cancelled.set()

    def run() -> object:
        scope.enter(slot)
        return function(*args)

    return contextvars.copy_context().run(run)


def write_streams(path: Path, seconds: int, sound: bool = False) -> dict[str, bytes]:
    """Make a playlist (HLS for .m3u8, DASH for .mpd) with segments of one second, 10 frames a second.

    Returns each file's content by name.
    """
    import av
    import numpy as np

    kind = "hls" if path.suffix == ".m3u8" else "dash"
    hls = {"hls_time": "1", "hls_list_size": "0", "hls_playlist_type": "vod"}
    with av.open(path, "w", format=kind, options=hls if kind == "hls" else {"seg_duration": "1"}) as output:
        picture = output.add_stream("libx264", rate=10)
        picture.width, picture.height, picture.pix_fmt, picture.gop_size = 64, 48, "yuv420p", 10
        tone = output.add_stream("aac", rate=16000, layout="mono") if sound else None
        for i in range(10 * seconds):
            frame = av.VideoFrame.from_ndarray(np.full((72, 64), 20 + i, np.uint8), format="yuv420p")
            frame.pts = i
            output.mux(picture.encode(frame))
            if tone is not None:
                wave = np.sin(np.arange(1600, dtype=np.float32) / 8)[None]
                samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                samples.sample_rate, samples.pts = 16000, 1600 * i
                output.mux(tone.encode(samples))
        for stream in filter(None, (picture, tone)):
            output.mux(stream.encode())
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}
