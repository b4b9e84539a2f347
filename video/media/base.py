"""What every file here stands on: opening inputs, choosing the picture stream, geometry, whole outputs.

All errors that leave this family name the file, the cause (in FFmpeg's words where it has any) and the cure.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import (
    ArgumentError,
    DecoderNotFoundError,
    DemuxerNotFoundError,
    FFmpegError,
    InvalidDataError,
    PatchWelcomeError,
    ProtocolNotFoundError,
)
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video import scope
from video.errors import InvalidMedia, OutputError, SourceError, SourceNotFound, UnsupportedMedia, VideoError

# Formats that live in one file. FFmpeg knows others (hls, concat, dash, imf, mlv, vobsub, image2) whose files
# name further files, so that a downloaded "video" could read anything on this machine; a list of those to
# refuse would be out of date with FFmpeg's next release.
SINGLE_FILE_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,ivf,yuv4mpegpipe,h263,h264,hevc,"
    "vvc,m4v,obu,av1,gif,apng,dv,rm,wtv,gxf,mjpeg,amv,wav,w64,mp3,aac,ac3,eac3,dts,flac,aiff,caf,amr,au,ape,wv"
)

_STILL = Disposition.attached_pic | Disposition.timed_thumbnails

_MOST_FAILURES = 50
"""Reads in a row that may fail before a file counts as at its end."""

_NO_DECODER = (DecoderNotFoundError, DemuxerNotFoundError, PatchWelcomeError, ProtocolNotFoundError)

_WRITE_CAUSES = {
    errno.ENOSPC: ("the disk is full", "Free some space, or choose another output folder."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space, or choose another output folder."),
    errno.EFBIG: ("it is larger than the file system allows", "Choose another output folder."),
    errno.EACCES: ("permission denied", "Choose an output folder that you may write to."),
    errno.EPERM: ("permission denied", "Choose an output folder that you may write to."),
    errno.EROFS: ("the file system is read-only", "Choose an output folder that you may write to."),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter output name."),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "Choose another output folder."),
    errno.EEXIST: ("a part of its path is a file, not a folder", "Choose another output folder."),
    errno.EISDIR: ("a folder of that name is in the way", "Choose another output name."),
}


class SupportsRatio(Protocol):
    """A rational number."""

    @property
    def numerator(self) -> int: ...
    @property
    def denominator(self) -> int: ...


def open_input(path: str | os.PathLike[str], *, header_only: bool = False) -> InputContainer:
    """Open a local media file for reading; close it, or use it in a `with` statement.

    Only this one file is ever read: no network, no playlists.

    :param header_only: do not let FFmpeg decode first frames to find what the header leaves out. Opening is
        then 10 ms cheaper at 720p; enough for mp4 and for what this package wrote, if nothing is decoded.
    :raises SourceNotFound: there is no such file.
    :raises SourceError: it cannot be read, or is a folder or a device.
    :raises InvalidMedia: it is empty, damaged, or not a media file.
    :raises UnsupportedMedia: it is of a kind that is not read here, such as a playlist.
    """
    name = os.fspath(path)
    check_file(name)
    options = {"protocol_whitelist": "file", "format_whitelist": SINGLE_FILE_FORMATS}
    # Reaches the decoders that FFmpeg probes with, not those that the streams come with.
    stream_options = {"skip_frame": "all"} if header_only else {}
    with media_errors(name):
        try:
            return av.open(
                url(name), "r", options=stream_options, container_options=options, metadata_errors="ignore"
            )
        except ArgumentError as error:  # what FFmpeg raises for a format that is not on the list
            raise UnsupportedMedia(
                "is of a kind that is not read here, such as a playlist or an image",
                subject=name,
                cure="Give the video file itself; of an HLS playlist, the file that it names.",
            ) from error


def check_file(name: str, *, empty: bool = False) -> None:
    """What can be said of a file before FFmpeg, whose words for it would be vague, is asked.

    :param empty: it may be.
    :raises SourceNotFound, SourceError, InvalidMedia: as `open_input` says.
    """
    try:
        about = os.stat(name)
        if stat.S_ISREG(about.st_mode):
            with open(name, "rb"):
                pass
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # a null byte is a ValueError
        raise SourceNotFound("no such file", subject=name, cure="Check the path.") from error
    except OSError as error:
        cause = f"cannot be read ({error.strerror})"
        fault = "account" if isinstance(error, PermissionError) else None
        raise SourceError(cause, subject=name, cure="Check its permissions.", fault=fault) from error
    if stat.S_ISDIR(about.st_mode):
        raise SourceError("is a folder", subject=name, cure="Give the files in it.", fault="input")
    if not stat.S_ISREG(about.st_mode):
        cure = "Save it as a file first."
        raise SourceError("is not a regular file", subject=name, cure=cure, fault="input")
    if about.st_size == 0 and not empty:
        raise InvalidMedia("is empty (0 bytes)", subject=name, cure="Download or copy it again.")


def url(path: str | os.PathLike[str]) -> str:
    """The path as FFmpeg takes it literally, whatever signs (`:`, `%`, a leading `-`) are in it."""
    return f"file:{os.path.abspath(path)}"


@contextlib.contextmanager
def media_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Explain what FFmpeg raises while `path` is read, as `InvalidMedia` and its like."""
    try:
        yield
    except FFmpegError as error:
        raise _media_error(os.fspath(path), error) from error


def _media_error(name: str, error: FFmpegError) -> VideoError:
    words = error.strerror or type(error).__name__
    if isinstance(error, _NO_DECODER):
        return UnsupportedMedia(
            f"needs a decoder that this FFmpeg has not ({words})",
            subject=name,
            cure="Convert it to H.264 in mp4 or mkv first.",
        )
    if isinstance(error, MemoryError):  # a damaged length asks for more than any machine has
        cause = f"asks for more memory than there is ({words})"
        return InvalidMedia(cause, subject=name, cure="Download or copy it again, or repair it.")
    if isinstance(error, OSError):
        return SourceError(f"cannot be read ({words})", subject=name, cure="Check the file and its disk.")
    cause = "ends too early" if isinstance(error, EOFError) else "is damaged or not a media file"
    return InvalidMedia(f"{cause} ({words})", subject=name, cure="Download or copy it again, or repair it.")


@contextlib.contextmanager
def writing(output: str | os.PathLike[str]) -> Iterator[Path]:
    """Make `output` appear whole or not at all.

    Yields the path of an unfinished file beside it, to be written by the block; when the block ends well it
    replaces `output`, otherwise nothing remains. Missing parent folders are made.

    Read errors must not pass through here unexplained (see `media_errors`): this blames the output.

    :raises OutputError: it cannot be written: no permission, a full disk, a name that is too long.
    """
    final = Path(output)
    # Shortened, so that a name which just fits does not grow past the limit of 255 bytes; random, so that two
    # jobs with the same output cannot write into each other.
    part = final.with_name(f"{final.stem[:40]}.{secrets.token_hex(4)}.part{final.suffix}")
    with output_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with scope.unfinished(part):
            yield part
            os.replace(part, final)


@contextlib.contextmanager
def output_errors(output: Path) -> Iterator[None]:
    """Explain what the system or FFmpeg raises while `output` is written, as `OutputError`."""
    try:
        yield
    except (VideoError, MemoryError):
        raise
    except (OSError, FFmpegError) as error:
        words = error.strerror or str(error)
        unknown = (words, "Check the output folder and its disk.")
        cause, cure = _WRITE_CAUSES.get(error.errno or 0, unknown)
        raise OutputError(f"cannot be written: {cause}", subject=str(output), cure=cure) from error


def video_stream(container: InputContainer) -> VideoStream:
    """The first stream of moving pictures (cover art is not), set to decode on this slot's share of threads.

    :raises UnsupportedMedia: there is none, or no decoder for it.
    """
    name = source_name(container)
    for stream in container.streams.video:
        if stream.disposition & _STILL:
            continue
        context = stream.codec_context
        if context is None:
            raise UnsupportedMedia(
                "has a video codec that this FFmpeg cannot decode",
                subject=name,
                cure="Convert it to H.264 in mp4 or mkv first.",
            )
        if not context.is_open:
            threads = scope.native_threads()
            context.thread_count = threads
            if threads > 1:
                context.thread_type = "AUTO"
        return stream
    kind = "audio only" if container.streams.audio else "no audio either"
    raise UnsupportedMedia(f"has no video stream ({kind})", subject=name, cure="Give a file with pictures.")


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The first audio stream that FFmpeg can decode, or None where the file has no audio.

    :raises UnsupportedMedia: it has, but no decoder for it.
    """
    streams = container.streams.audio
    for stream in streams:
        if stream.codec_context is not None:
            return stream
    if streams:
        raise UnsupportedMedia(
            "has an audio codec that this FFmpeg does not know",
            subject=source_name(container),
            cure="Convert its audio to AAC first.",
        )
    return None


def packets(container: InputContainer, *streams: Stream) -> Iterator[Packet[Any]]:
    """The packets of `streams` from the reading position on, without PyAV's empty one at the end.

    Damaged places are passed over, and a file that is damaged for good ends there; only one that gives
    nothing at all is an error.

    :raises InvalidMedia: not a single packet can be read.
    :raises ItemCancelled: this item has been given up.
    """
    count = failures = 0
    with media_errors(source_name(container)):
        demuxer = container.demux(streams)
        while True:
            try:
                packet = next(demuxer, None)
            except (InvalidDataError, IndexError) as error:  # IndexError: of a stream that begins midway
                failures += 1
                if failures < _MOST_FAILURES:
                    demuxer = container.demux(streams)
                    continue
                if count == 0 and isinstance(error, InvalidDataError):
                    raise
                return
            if packet is None:
                return
            failures = 0
            if packet.size:
                count += 1
                scope.check_cancelled()
                yield packet


def decoded(stream: Any, packet: Packet[Any] | None) -> list[Any]:
    """The frames that come out of a stream's decoder; none for a damaged packet, as the next may be whole.

    :param packet: None: what is left.
    """
    try:
        return stream.decode(packet)  # type: ignore[no-any-return]
    except FFmpegError:
        return []


def source_name(container: InputContainer) -> str:
    """The path that `open_input` was given, absolute, for messages."""
    return container.name.removeprefix("file:")


def sound_planes(frame: AudioFrame) -> Sequence[AudioPlane]:
    """Where a frame's samples are: one plane for each channel, or one for all where they take turns.

    PyAV itself counts planes up to a null pointer, and with eight channels or more there is none: what it
    then takes for a plane is other memory.
    """
    return frame.planes[: frame.layout.nb_channels if frame.format.is_planar else 1]


def rotation(frame: VideoFrame) -> int:
    """Degrees clockwise (0, 90, 180 or 270) by which the frame must be turned to be shown upright."""
    # FFmpeg counts counter-clockwise, gives -2147483648 for a matrix of zeros, and allows any angle.
    counter_clockwise = frame.rotation
    if not -360 <= counter_clockwise <= 360:
        return 0
    return round(-counter_clockwise / 90) * 90 % 360


def displayed_size(
    width: int, height: int, sample_aspect_ratio: Fraction | None, rotation: int
) -> tuple[int, int]:
    """(width, height) in square pixels as a player shows the picture: even numbers, at least 2.

    :param width, height: stored pixels, before rotation.
    :param sample_aspect_ratio: width of a stored pixel by its height; None, or absurd, counts as 1.
    :param rotation: degrees clockwise, as from `rotation`.
    """
    shape = sample_aspect_ratio or Fraction(1)
    if not Fraction(1, 10) <= shape <= 10:
        shape = Fraction(1)
    wide, high = _even(width * shape), _even(Fraction(height))
    return (high, wide) if rotation in (90, 270) else (wide, high)


def _even(length: Fraction) -> int:
    """The nearest even number of pixels; an odd whole number loses one, which can be cropped unblurred."""
    return max(2, 2 * -((1 - length) // 2))


def origin(container: InputContainer) -> Fraction:
    """The timestamp, in seconds, that players show as 0:00: where the first video or audio stream starts.

    All times that this family takes or gives in seconds count from here, so a file whose timestamps begin
    at 10 s, or below zero, still begins at 0.
    """
    # Not container.start_time: rounded to microseconds, it can put a frame on the wrong side of a cut.
    starts = [
        stream.start_time * fraction(stream.time_base)
        for stream in (*container.streams.video, *container.streams.audio)
        if stream.start_time is not None and not stream.disposition & _STILL
    ]
    return min(starts, default=Fraction(0))


def fraction(value: SupportsRatio | None) -> Fraction:
    """A rational number of PyAV's, whose class and sign for "unknown" differ by version; unknown is 0."""
    return Fraction(value.numerator, value.denominator) if value else Fraction(0)


def frame_rate(stream: VideoStream) -> Fraction | None:
    """Frames per second as the header says, or None where that is missing or absurd."""
    for rate in (fraction(stream.average_rate), fraction(stream.guessed_rate)):
        # Containers that count in milliseconds report 1000, others 90000, for "I do not know".
        if 0 < rate < 1000:
            return rate
    return None


def usual_step(video: VideoStream) -> int:
    """Ticks from frame to frame as the header has it; of 25 frames a second where it says nothing."""
    return max(1, round(1 / (frame_rate(video) or 25) / fraction(video.time_base)))
