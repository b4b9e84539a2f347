"""Direct addresses of media files, over http and https.

A download is written to `name.part` and renamed once it is whole. A cut connection goes on with a Range
request where it stopped, also in a later call into the same folder, provided that the server vouches for
the version: its ETag or Last-Modified is kept in `name.part.version` and sent as If-Range (RFC 9110,
sections 13.1.5 and 14), and what comes back is compared with it. Without such a mark it starts afresh.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import httpx2

from video import scope
from video.errors import DownloadFailed, OutputError, SourceError
from video.sources.base import Fetched, display_name, redact, url

_SUFFIXES = re.compile(
    r"\.(mp4|m4v|mov|mkv|webm|avi|m?ts|m2ts|mpe?g|vob|wmv|asf|flv|f4v|3gp|3g2|ogv|mxf|m4a|mp3|aac|wav|flac|ogg|opus)",
    re.IGNORECASE,
)
_STATUS = {
    401: ("asks for a login", "Put it into the address, as in https://user:password@host/..."),
    403: ("refuses access", "The address may have expired, or need a login."),
    404: ("has no such file", "Check the address."),
    410: ("says the file is gone for good", None),
    429: ("asks to slow down", "Wait a while, or fetch fewer at once."),
}
_TRANSIENT = frozenset((408, 500, 502, 503, 504))
_PATIENT_SECONDS = 5.0  # a worker may wait so long for a server that asks for it
_REFILL = 1 << 20  # new bytes after which an attempt counts as progress, not as one more failure
_NO_MEDIA = 'yt-dlp (pip install "parallel-video[download]") knows many pages and playlists.'


class _Again(Exception):
    """The attempt failed for a reason that may pass; its cause is what to raise when it does not."""

    def __init__(self, failure: DownloadFailed, wait: float = 0.0) -> None:
        """:param wait: seconds that the server asks for."""
        super().__init__(failure.cause)
        self.failure = failure
        self.wait = wait


@dataclass(frozen=True, slots=True)
class HttpSource:
    """Fetches over http and https.

    :param timeout: seconds without a connection or without a byte before an attempt counts as stalled.
    :param tries: attempts without progress before the download fails.
    :param wait: seconds before the second attempt; doubled for each further one.
    """

    timeout: float = 15.0
    tries: int = 4
    wait: float = 0.5
    takes: ClassVar[str] = "http and https addresses of media files"

    def claims(self, source: str) -> bool:
        """Addresses that end like a media file; without yt-dlp all others too, to say what they need."""
        parts = url(source)
        if parts is None or parts.scheme.lower() not in ("http", "https"):
            return False
        return _suffix(parts.path) != "" or find_spec("yt_dlp") is None

    def fetch(self, source: str, folder: Path) -> Fetched:
        """Download it, retrying what may pass (a cut, a stall, a server's own failure).

        :raises DownloadFailed: with the HTTP status, where there is one.
        :raises OutputError: the folder cannot be written, or the disk is full.
        :raises SourceError: another download of this address is writing there.
        :raises ItemCancelled: the item was given up meanwhile.
        """
        parts = url(source)
        if parts is None or parts.scheme.lower() not in ("http", "https") or not parts.hostname:
            raise DownloadFailed("is no http or https address", subject=redact(source), final=True)
        title = display_name(source)
        # The address is part of the name: two videos called v.mp4 on two hosts must not meet in one file.
        mark = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()[:8]
        target = folder / f"{title}-{mark}{_suffix(parts.path)}"
        with _client(self.timeout) as client, contextlib.closing(_Part(target, redact(source))) as part:
            left, waits, reached = self.tries, 0, part.size
            while True:
                scope.check_cancelled()
                try:
                    _attempt(client, source, part)
                    break
                except _Again as again:
                    failure, asked = again.failure, again.wait
                # Progress is measured against the most there ever was: a server that starts over and over
                # again and always cuts must not keep us for ever.
                if part.size >= reached + _REFILL:
                    left, waits, reached = self.tries, 0, part.size
                left -= 1
                if left <= 0:
                    raise failure
                _pause(max(asked, self.wait * 2**waits))
                waits += 1
            part.finish()
        return Fetched(target, title, temporary=True)


def _suffix(path: str) -> str:
    suffix = PurePosixPath(path).suffix
    return suffix.lower() if _SUFFIXES.fullmatch(suffix) else ""


def _client(timeout: float) -> httpx2.Client:
    # Without "identity" a server may compress, and then lengths and ranges mean something else.
    headers = {"User-Agent": "parallel-video", "Accept": "*/*", "Accept-Encoding": "identity"}
    return httpx2.Client(headers=headers, timeout=timeout, follow_redirects=True, max_redirects=10)


def _pause(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        scope.check_cancelled()
        time.sleep(min(left, 0.1))


class _Part:
    """The unfinished file, the server's mark for the version that it holds, and how much is there.

    Only its own troubles with the disk become OutputError.
    """

    def __init__(self, target: Path, subject: str) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.mark = target.with_name(target.name + ".part.version")
        with self._disk():
            self._file = self.path.open("ab", buffering=0)
        if not self._lock():
            self._file.close()
            raise SourceError(
                "is being downloaded into this folder by another job",
                subject=subject,
                cure="Give each job its own folder.",
            )
        self.size = os.fstat(self._file.fileno()).st_size
        self.version = ""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self.version = _sound(self.mark.read_text())
        if not self.version:
            self.restart("")

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and lock its owner may have finished and renamed it: then it is no part any more.
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError:
            return False

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            cure = "Free some space." if full else "Choose another folder."
            raise OutputError(
                f"cannot be written ({error.strerror})", subject=str(self.path), cure=cure
            ) from None

    def restart(self, version: str) -> None:
        """Empty the file. The mark is on disk before the first byte that it vouches for."""
        with self._disk():
            self._file.truncate(0)
            self.size, self.version = 0, version
            if version:
                self.mark.write_text(version)
            else:
                self.mark.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        with self._disk():
            while view:
                written = self._file.write(view)  # may be short, and a full disk shows only at the next one
                self.size += written
                view = view[written:]

    def finish(self) -> None:
        with self._disk():
            os.replace(self.path, self.target)
            self.mark.unlink(missing_ok=True)

    def close(self) -> None:
        if self.size == 0:  # nothing to go on with
            with contextlib.suppress(OSError):
                self.path.unlink()
                self.mark.unlink(missing_ok=True)
        self._file.close()


def _attempt(client: httpx2.Client, source: str, part: _Part) -> None:
    """One request, from where the part ends. Returns once the file is whole.

    :raises _Again: it broke off in a way that may pass.
    """
    resume = {"Range": f"bytes={part.size}-", "If-Range": part.version} if part.size else {}
    try:
        with client.stream("GET", source, headers=resume) as response:
            total = _accept(response, source, part)
            for chunk in response.iter_bytes():
                scope.check_cancelled()
                if part.size == 0:
                    _check_kind(response, chunk, source)
                part.write(chunk)
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        # Its errors do not cross a process border, and may quote the address: only our own words leave here.
        raise _translate(error, source, stall=client.timeout.read) from None
    if part.size == 0:
        raise _failure(source, "the server sent an empty file")
    if total is not None and part.size != total:
        raise _Again(_failure(source, f"broke off after {part.size} of {total} bytes"))


def _accept(response: httpx2.Response, source: str, part: _Part) -> int | None:
    """Judge status and headers, ready the part for the body, return the whole file's size if it is known."""
    status, headers = response.status_code, response.headers
    if status == 416 or (status == 206 and not _continues(response, part)):
        part.restart("")
        raise _Again(_failure(source, "changed on the server during the download"))
    if status == 206:
        whole = headers["Content-Range"].rpartition("/")[2]
        return int(whole) if whole.isdigit() else None
    if status != 200:
        failure = _refusal(response, source)
        asked = failure.retry_after
        wait = 0.0 if asked is None else float(asked) if asked.isdecimal() else math.inf
        # Who asks for a longer time is asked again by the batch, which holds no worker meanwhile.
        raise _Again(failure, wait) if status in _TRANSIENT and wait <= _PATIENT_SECONDS else failure
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        part.restart("")  # compressed all the same: neither its length nor its ranges are the file's
        return None
    part.restart(_version(headers))
    length = headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _version(headers: httpx2.Headers) -> str:
    """The mark that If-Range may carry: a strong ETag, or the date; "" for none."""
    etag = headers.get("ETag", "")
    return _sound(etag if etag.startswith('"') else headers.get("Last-Modified", ""))


def _sound(version: str) -> str:
    """`version` if it can be sent as a header, else ""."""
    return version if version.isascii() and version.isprintable() else ""


def _continues(response: httpx2.Response, part: _Part) -> bool:
    """Whether a 206 goes on exactly where the part ends, in the same version (some ignore If-Range)."""
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return (
        start is not None
        and part.size > 0
        and int(start[1]) == part.size
        and _version(response.headers) in ("", part.version)
    )


def _check_kind(response: httpx2.Response, head: bytes, source: str) -> None:
    kind = response.headers.get("Content-Type", "").lower()
    start = head[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if "html" in kind or start.startswith((b"<!doctype html", b"<html")):
        cure = f"Give the media file's own address; {_NO_MEDIA}"
        raise _failure(source, "is a web page, not media", cure, final=True)
    if "mpegurl" in kind or "dash+xml" in kind or start.startswith((b"#extm3u", b"<mpd")):
        raise _failure(source, "is a playlist, not a file", _NO_MEDIA, final=True)


def _failure(source: str, cause: str, cure: str | None = None, **more: Any) -> DownloadFailed:
    return DownloadFailed(cause, subject=redact(source), cure=cure, **more)


def _refusal(response: httpx2.Response, source: str) -> DownloadFailed:
    status = response.status_code
    cause, cure = _STATUS.get(status, ("failed" if status >= 500 else "gave no file", None))
    delay = response.headers.get("Retry-After", "")
    if delay.isdigit():
        cure = f"It asks to wait {delay} s."
    return _failure(
        source, f"the server {cause} (HTTP {status})", cure, status=status, retry_after=delay or None
    )


def _translate(error: Exception, source: str, stall: float | None) -> Exception:
    """httpx2's error as ours; those that may pass as `_Again`. Most specific first."""
    roots = list(_causes(error))

    def of(kind: type[BaseException]) -> bool:
        return any(isinstance(root, kind) for root in roots)

    match error:
        case httpx2.ConnectTimeout():
            return _failure(source, f"the host does not answer within {stall:g} s", "Check the address.")
        case httpx2.TimeoutException():
            return _Again(_failure(source, f"stalled: no byte for {stall:g} s"))
        case httpx2.ConnectError() if of(socket.gaierror):
            return _failure(source, "the host cannot be found", "Check its name and your network.")
        case httpx2.ConnectError() if of(ssl.SSLError):
            verify = next(
                (root.verify_message for root in roots if isinstance(root, ssl.SSLCertVerificationError)), ""
            )
            cause = f"the connection is not safe ({verify or 'TLS failed'})"
            return _failure(source, cause, "Check the address.", final=True)
        case httpx2.ConnectError() if of(ConnectionRefusedError):
            return _failure(source, "the host refuses the connection", "Check the address and its port.")
        case httpx2.ConnectError():
            return _failure(source, "the host cannot be reached", "Check the address and your network.")
        case httpx2.TooManyRedirects():
            return _failure(source, "redirects without end", "Check the address.", final=True)
        case httpx2.UnsupportedProtocol():
            return _failure(source, "leads to something other than http and https", final=True)
        case httpx2.ProxyError():
            return _failure(source, "the proxy refuses", "Check the proxy settings in the environment.")
        case httpx2.NetworkError() | httpx2.RemoteProtocolError():
            return _Again(_failure(source, "the connection broke off"))
        case httpx2.InvalidURL() | UnicodeError():
            cure = 'Encode special characters, as in "%23" for "#".'
            return _failure(source, "is no valid address", cure, final=True)
        case _:
            return _failure(source, f"cannot be downloaded ({type(error).__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
