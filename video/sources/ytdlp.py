"""Pages and playlists (HLS, DASH) that yt-dlp knows. Needs the extra `download`, and no ffmpeg command."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import av
import yt_dlp

from video import scope
from video.errors import DownloadFailed, OutputError
from video.sources.base import Fetched, display_name, is_url, redact, safe_stem, url

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class YtdlpSource:
    """Fetches with yt-dlp, at up to 1080 lines.

    No configuration file, archive, cache, cookie or login of the user's own yt-dlp is used.

    :param timeout: seconds without a byte before an attempt counts as stalled.
    :param tries: attempts for each request, fragment and page.
    """

    timeout: float = 30.0
    tries: int = 4
    takes: ClassVar[str] = "http and https addresses of pages and playlists that yt-dlp knows"

    def claims(self, source: str) -> bool:
        parts = url(source)
        return parts is not None and parts.scheme.lower() in ("http", "https")

    def fetch(self, source: str, folder: Path) -> Fetched:
        """Download the one video that the address stands for.

        :raises DownloadFailed: with yt-dlp's last message; also for a live stream, or several videos.
        :raises OutputError: the folder cannot be written, or the disk is full.
        :raises ItemCancelled: the item was given up meanwhile.
        """
        if not self.claims(source):
            raise DownloadFailed("is no http or https address", subject=redact(source), final=True)
        failure: Exception | None = None
        try:
            with yt_dlp.YoutubeDL(self._options(source, folder)) as downloader:
                info = _single(downloader.extract_info(source, download=False), source)
                info = downloader.process_ie_result(info, download=True)
        except (yt_dlp.utils.YoutubeDLError, UnicodeError) as error:
            failure = _translate(error, source, folder)
        if failure is not None:
            # Raised out here, without yt-dlp's error as its context: that one quotes the address, and holds
            # the open connection, which no process border lets through.
            raise failure
        files = [Path(done["filepath"]) for done in info.get("requested_downloads") or ()]
        if not files or not all(file.is_file() and file.stat().st_size for file in files):
            raise DownloadFailed("yt-dlp left no file", subject=redact(source))
        path = files[0] if len(files) == 1 else _join(files, folder / f"{_name(source)}.mkv", source)
        title = info.get("title")
        return Fetched(path, safe_stem(title) if title else display_name(source), temporary=True)

    def _options(self, source: str, folder: Path) -> dict[str, Any]:
        retries = self.tries - 1
        return {
            "format": _choose,
            "format_sort": ["res:1080", "vcodec:h264", "acodec:aac"],  # what is cut and played most easily
            "outtmpl": {"default": f"{_name(source)}.%(format_id)s.%(ext)s"},
            "paths": {"home": str(folder)},
            "overwrites": True,
            "continuedl": False,  # it does not check that the rest is of the same version
            "noplaylist": True,
            "playlist_items": "1-2",  # enough to see that there are several
            "socket_timeout": self.timeout,
            "retries": retries,  # 0 when yt-dlp is used as a library
            "fragment_retries": retries,
            "extractor_retries": retries,
            "file_access_retries": retries,
            "retry_sleep_functions": dict.fromkeys(("http", "fragment", "extractor"), _backoff),
            "skip_unavailable_fragments": False,  # a hole in the video is a failure, not a detail
            "fixup": "never",  # needs ffmpeg; FFmpeg's own demuxers cope with MPEG-TS in a .mp4
            "cachedir": False,
            "quiet": True,
            "noprogress": True,
            "color": "never",
            "logger": _Log(silent=redact(source) != source),
            "progress_hooks": [lambda _: scope.check_cancelled()],
        }


def _name(source: str) -> str:
    """Not yt-dlp's own name for it: unrelated pages share one, and it may hold parts of a query."""
    return hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()[:16]


def _choose(context: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One file with picture and sound, unless a taller picture comes apart from its sound."""
    formats = context["formats"]  # the best comes last; a codec that is not "none" may still be unknown
    seen = [one for one in formats if one.get("vcodec") != "none"]
    whole = [one for one in seen if one.get("acodec") != "none"][-1:]
    picture = [one for one in seen if one.get("acodec") == "none"][-1:]
    sound = [one for one in formats if one.get("vcodec") == "none" and one.get("acodec") != "none"][-1:]
    taller = picture and whole and (picture[0].get("height") or 0) > (whole[0].get("height") or 0)
    yield from picture + sound if (taller and sound) or not whole else whole


_STREAM_FORMATS = "mov,matroska,webm,mpegts,aac,mp3,ogg,flac"


def _join(files: list[Path], target: Path, source: str) -> Path:
    """Picture and sound in one file, packet by packet, without loss; Matroska takes every codec there is."""

    def seconds(packet: av.Packet[Any]) -> float:
        return float((packet.dts or 0) * (packet.time_base or 0))

    try:
        with av.open(target, "w", format="matroska") as output, contextlib.ExitStack() as stack:
            streams, packets = {}, []
            for file in files:
                # Downloaded data: its demuxer may open nothing but this one file.
                options = {"protocol_whitelist": "file", "format_whitelist": _STREAM_FORMATS}
                media = stack.enter_context(av.open(f"file:{file}", container_options=options))
                stream = media.streams[0]
                streams[stream] = output.add_stream_from_template(stream)
                packets.append(media.demux(stream))
            for packet in heapq.merge(*packets, key=seconds):
                scope.check_cancelled()
                if packet.dts is not None:
                    packet.stream = streams[packet.stream]
                    output.mux(packet)
    except av.FFmpegError as error:
        if error.errno in _FULL:
            raise OutputError(f"cannot be written ({error.strerror})", subject=str(target)) from None
        cause = f"picture and sound cannot be joined ({error.strerror})"
        raise DownloadFailed(cause, subject=redact(source), final=True) from None
    for file in files:
        file.unlink()
    return target


class _Log:
    """yt-dlp's messages, as debug records: what matters of them arrives as an error.

    Silent for an address with secrets: yt-dlp makes ids of parts of it and says them in any line.
    """

    def __init__(self, silent: bool) -> None:
        self._silent = silent

    def debug(self, message: str) -> None:
        if not self._silent:
            _log.debug("%s", redact(message))

    info = warning = error = debug


def _backoff(n: int) -> float:
    scope.check_cancelled()
    return float(min(0.5 * 2**n, 4.0))


def _single(info: dict[str, Any] | None, source: str) -> dict[str, Any]:
    while info is not None and "entries" in info:
        entries = [entry for entry in info["entries"] if entry]
        if len(entries) > 1:
            cure = "Give the address of each video."
            raise DownloadFailed("stands for several videos", subject=redact(source), cure=cure, final=True)
        info = entries[0] if entries else None
    if info is None:
        raise DownloadFailed("has no video", subject=redact(source), final=True)
    if info.get("is_live"):
        cure = "Try again when it has ended."
        raise DownloadFailed("is a live stream", subject=redact(source), cure=cure, final=True)
    return info


def _translate(error: Exception, source: str, folder: Path) -> DownloadFailed | OutputError:
    status, text = None, str(error)
    for cause in _causes(error):
        # Errors of the disk carry a file name, except when it is full; in those of urllib it is an address.
        about_file = isinstance(cause, OSError) and cause.filename and not is_url(str(cause.filename))
        if isinstance(cause, OSError) and (about_file or cause.errno in _FULL):
            return OutputError(f"cannot be written ({cause.strerror})", subject=str(folder))
        status = getattr(cause, "status", None) or status
        text = getattr(cause, "orig_msg", None) or text  # without the id, which may be part of a query
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).removeprefix("ERROR:").strip()
    text = redact(text.partition("; please report this issue")[0])
    return DownloadFailed(text, subject=redact(source), status=status)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what lies behind it; yt-dlp keeps that in `exc_info` and `cause`, not in `__cause__`."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if isinstance(error, BaseException) and id(error) not in seen:
            seen.add(id(error))
            yield error
            info = getattr(error, "exc_info", None) or (None, None)
            waiting += [info[1], getattr(error, "cause", None), error.__cause__, error.__context__]
