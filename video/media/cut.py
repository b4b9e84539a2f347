"""Cutting one clip out of a video: exact to the frame, by encoding all of it or its edges only, or from a key
frame on, by copying.

Seconds count as a player's clock does: 0 is where the first video or audio stream of the file starts, even
if its timestamps begin elsewhere or below zero. A clip starts at 0 itself.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast, get_args

from av.codec.context import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from video import scope
from video.errors import ConfigError, InvalidMedia, MediaError, OutputError, UnsupportedMedia, VideoError
from video.media import base, nal, reencode, remux, splice
from video.media.encode import CONTAINERS, Written, muxer, problem
from video.media.nal import Unspliceable
from video.media.smart import Kind, Span
from video.models import Mode

_BEGINNING_BYTES = 2000
"""Of each slice of a picture."""


@dataclass(frozen=True, slots=True)
class CutSpan:
    """Neighbouring frames of a clip that were treated alike."""

    kind: Kind
    start: float
    """Seconds in the source at which its first frame is shown."""
    end: float
    """Seconds in the source at which its last frame ends."""
    frames: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A clip that was written, as counted while it was."""

    path: Path
    start: float
    """Seconds in the source at which its first frame is shown."""
    end: float
    """Seconds in the source at which its last frame ends."""
    width: int
    """Pixels as shown, after rotation and pixel shape."""
    height: int
    frames: int
    bytes: int
    mode: Mode
    """How its pictures were written: of a smart cut, what that came to."""
    reason: str
    """Why so, in words."""
    spans: tuple[CutSpan, ...]
    """What of it was copied and what encoded, in the order shown."""


def cut(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    start: float,
    end: float,
    mode: Mode = "exact",
    *,
    as_stored: bool = False,
) -> Cut:
    """Write the part of `source` from `start` to `end` to `output`, with its sound.

    `exact` encodes anew (H.264 and AAC): it holds the frames that begin at or after `start` and before
    `end`, no other, each as long as in the source, upright, with square pixels and even sizes. It starts
    with the first such frame, and sound is cut at the same instants, to the sample.

    `smart` holds the same frames at the same times, but copies those that it can, to the bit, and encodes
    the others in the source's own codec (H.264 or HEVC). It takes a fraction of the time where clips are
    longer than the source's key frames are apart. It looks at what it wrote, and does as `exact` where that
    is cheaper, where the source cannot be spliced or copies would not be upright, with square pixels and 8
    bits, or where the result is not right; `mode`, `reason` and `spans` of the result say so.

    `copy` copies what is stored, many times faster: it starts at the last key frame at or before `start`,
    and ends up to a few frames after `end` where stored
    frames depend on each other.

    `output` appears whole or not at all, checked, and replaces what was there.

    :param source: a local video file.
    :param output: its extension, `.mp4`, `.mkv` or `.mov`, chooses the container.
    :param start: seconds from the start of the video as a player shows it, 0 or more.
    :param end: seconds; beyond the end of the video means its end.
    :param as_stored: of `smart`: rotation and pixel shape may stay notes to the player, and samples as deep
        and colours as fine as they are.
    :raises ConfigError: a time, mode or output that makes no sense, or no frame begins between the times.
    :raises SourceNotFound, SourceError: `source` cannot be read.
    :raises InvalidMedia: it is damaged so that no frame can be had.
    :raises UnsupportedMedia: it has no video, or `copy` cannot put its codec into this container, or would
        show a beginning that the file hides.
    :raises OutputError: `output` cannot be written: no permission, a full disk, a failed check.
    :raises ItemCancelled: the batch was left meanwhile.
    """
    source, output = os.fspath(source), Path(output)
    _check_arguments(source, output, start, end, mode)
    with _open_source(source, mode) as container, base.writing(output) as part:
        zero = base.origin(container)
        span = (zero + Fraction(start), zero + Fraction(end))
        if mode == "smart":
            done = _splice(container, part, source, *span, as_stored=as_stored)
        else:
            done = _Done(_write(container, part, source, mode, *span), mode, "as asked")
        written = done.written or _encode_all(part, source, *span)
        if written.first < zero:
            raise UnsupportedMedia(
                "hides its beginning by an edit list, which a copy would show",
                subject=source,
                cure="Use mode exact, or start later.",
            )
        if not done.spans and (wrong := _problem(part, written, decodes=mode == "copy")):
            raise _refused(wrong, source, output, mode)
        size = part.stat().st_size
    first, end = float(written.first - zero), float(written.end - zero)
    kind: Kind = "copy" if done.mode == "copy" else "encode"
    spans = tuple(
        CutSpan(one.kind, float(one.first * done.tick - zero), float(one.stop * done.tick - zero), one.frames)
        for one in done.spans
    ) or (CutSpan(kind, first, end, written.frames),)
    return Cut(
        path=output,
        start=first,
        end=end,
        width=written.size[0],
        height=written.size[1],
        frames=written.frames,
        bytes=size,
        mode=done.mode,
        reason=done.reason,
        spans=(*spans[:-1], replace(spans[-1], end=end)),  # planned ones end where the clip was to end
    )


def _write(
    container: InputContainer, part: Path, source: str, mode: Mode, start: Fraction, end: Fraction
) -> Written:
    write = remux.write if mode == "copy" else reencode.write
    video, audio = base.video_stream(container), base.audio_stream(container)
    with muxer(part, source) as out:
        return write(container, out, video, audio, start, end)


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of a cut."""

    written: Written | None
    """None: it is to be encoded anew."""
    mode: Mode
    reason: str
    spans: tuple[Span, ...] = ()
    """Of a plan that was carried out, and checked; empty: one, over all of it."""
    tick: Fraction = Fraction(1)
    """Seconds: what they count in."""


def _splice(
    container: InputContainer, part: Path, source: str, start: Fraction, end: Fraction, *, as_stored: bool
) -> _Done:
    """Write a clip as planned, if the plan is to copy something and the result passes all checks."""
    video, audio = base.video_stream(container), base.audio_stream(container)
    try:
        job = splice.prepare(container, video, start, end, as_stored=as_stored)
        plan = job.plan
        if plan.mode == "exact":
            return _Done(None, "exact", plan.reason)
        with muxer(part, source) as out:
            written = splice.write(container, out, video, audio, job, start, end)
        splice.check(part, job)
        if wrong := _problem(part, written, decodes=False):
            raise Unspliceable(f"the check failed: {wrong}")
    except (Unspliceable, MediaError) as error:  # to encode all may still do
        scope.remove(str(part))
        return _Done(None, "exact", f"it {error.cause}" if isinstance(error, MediaError) else str(error))
    return _Done(written, plan.mode, plan.reason, plan.spans, plan.tick)


def _encode_all(part: Path, source: str, start: Fraction, end: Fraction) -> Written:
    """Encode a clip anew, from a source that nothing has been read from."""
    with base.open_input(source) as container:
        return _write(container, part, source, "exact", start, end)


def _check_arguments(source: str, output: Path, start: float, end: float, mode: str) -> None:
    if mode not in get_args(Mode):
        raise ConfigError(f"unknown mode {mode!r}", subject="mode", cure="Use one of: exact, copy, smart.")
    for name, value in (("start", start), ("end", end)):
        if not math.isfinite(value):
            raise ConfigError(f"must be a finite number of seconds, not {value}", subject=name)
    if start < 0:
        raise ConfigError(
            f"must not be negative, but is {start:g} s", subject="start", cure="0 is the start."
        )
    if end <= start:
        raise ConfigError(f"must be after start ({start:g} s), but is {end:g} s", subject="end")
    if output.suffix.lower() not in CONTAINERS:
        known = ", ".join(CONTAINERS)
        raise ConfigError(
            f"unknown extension {output.suffix!r}", subject=str(output), cure=f"Use one of: {known}."
        )
    if os.path.exists(output) and os.path.exists(source) and os.path.samefile(source, output):
        raise ConfigError("is the source itself", subject=str(output), cure="Choose another output name.")


def _open_source(source: str, mode: Mode) -> InputContainer:
    if mode == "copy":
        container = base.open_input(source, header_only=True)
        if container.format.name.startswith("mov"):  # its header leaves out nothing that copying needs
            return container
        container.close()
    return base.open_input(source)


def _problem(part: Path, written: Written, *, decodes: bool) -> str:
    """Why a file is no clip, that is, does not read back as what was written; empty if all is well.

    :param decodes: look whether its first picture can be decoded, which who only copies does not know.
    """
    try:
        return problem(
            part,
            frames=written.frames,
            seconds=written.last - written.first,
            has_audio=written.sound,
            look=_beginning if decodes else None,
        )
    except MediaError as error:
        return f"it {error.cause}"


def _beginning(video: VideoStream, packets: Sequence[Packet[Any]]) -> str:
    return "" if _begins(video, packets) else "its first pictures cannot be decoded"


def _begins(video: VideoStream, packets: Sequence[Packet[Any]]) -> bool:
    """Whether one of the first pictures can be decoded; mostly the first can, and is all that is looked at.

    Of H.264 and HEVC its beginning is enough, which shows that header and picture fit: decoders make up the
    rest. The whole would take as long as all else of a copy (13 ms at 720p).
    """
    codec, header = video.codec_context.name, video.codec_context.extradata
    length = 0
    with contextlib.suppress(Unspliceable):
        length = nal.header_of(codec, header)[1] if codec in ("h264", "hevc") else 0
    for packet in packets:
        context = cast(VideoCodecContext, CodecContext.create(video.codec_context.codec.name, "r"))
        context.extradata = header
        context.thread_count = 1
        with contextlib.suppress(FFmpegError, Unspliceable):
            data = bytes(packet)
            if length:
                units = (unit[:_BEGINNING_BYTES] for unit in nal.split(data, length))
                data = b"".join(len(unit).to_bytes(length, "big") + unit for unit in units)
            if context.decode(Packet(data)) or context.decode(None):
                return True
    return False


def _refused(wrong: str, source: str, output: Path, mode: Mode) -> VideoError:
    if mode == "copy":  # nothing was made here: what is wrong came with the source
        cause = f"cannot be copied from there: {wrong}"
        return InvalidMedia(cause, subject=source, cure="Use mode exact, or start elsewhere.")
    return OutputError(f"failed the check after writing: {wrong}", subject=str(output), cure="Try again.")
