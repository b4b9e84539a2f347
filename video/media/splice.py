"""The smart way of cutting: carries out a plan of `video.media.smart`, and looks at what came out.

Copied pictures stay what they are, to the bit. Sound is encoded anew, in one piece and to the sample.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from video.errors import InvalidMedia
from video.media import base, index, nal, remux, smart, subtitles
from video.media.edges import EdgeEncoder, Luma, decoded, luma
from video.media.encode import CLIP, HVC1, Written, misfit
from video.media.judges import ssim
from video.media.nal import Unspliceable
from video.media.seek import packets_from, read_sound, ticks
from video.media.sound import RUN_UP_SECONDS, SoundReader, SoundWriter

_LOOK_BEFORE, _LOOK_AFTER = 2, 3
"""Frames on either side of a splice that are compared with the source's."""

_LEAST_SSIM = 0.9
"""An encoded frame below this is not the source's picture; what x264 makes of hard ones stays above 0.95."""

_FAST_SOUND = replace(CLIP, audio_options={"aac_coder": "fast"})
"""Half the CPU time and the same size, with noise that is lower but less well hidden."""


@dataclass(slots=True)
class Job:
    """A plan, with what is needed to carry it out and to check it."""

    plan: smart.Plan
    stored: list[index.Stored]
    sets: nal.Sets
    length: int
    """Bytes of the length before each unit of the source; 0 where it uses start codes."""
    times: list[int] = field(default_factory=list)
    """Ticks: when each frame of the clip is shown in the source, rising."""
    copied: set[int] = field(default_factory=set)
    """Those of them that are copied."""
    begin: int = 0
    """The first of those."""
    looked_at: dict[int, Luma] = field(default_factory=dict)
    """The source's pictures on either side of each splice, by their time."""


def prepare(
    container: InputContainer, video: VideoStream, start: Fraction, end: Fraction, *, as_stored: bool = False
) -> Job:
    """Read the index around a clip, and plan it.

    :param start, end: timestamps of the source, in seconds.
    :param as_stored: pictures that players have to turn or stretch, or that are not of 8 bits and 4:2:0, may
        stay so.
    :raises Unspliceable: the stream is of a kind that cannot be spliced at all.
    """
    if not as_stored and (reason := misfit(container, video)):
        raise Unspliceable(reason)
    tick = base.fraction(video.time_base)
    first, stop = ticks(start, tick), ticks(end, tick)
    context = video.codec_context
    stored = index.read(container, video, first, stop)
    sets, length = nal.header_of(context.name, context.extradata)
    deep = context.format is not None and context.format.components[0].bits > 8
    costs = smart.usual_costs(context.name, context.width, context.height, deep=deep)
    plan = smart.plan(stored, first, stop, costs, tick=tick, zero=round(base.origin(container) / tick))
    job = Job(plan, stored, sets, length)
    job.times = sorted(one.pts for one in stored if first <= one.pts < stop and not one.hidden)
    for span in plan.spans:
        if span.kind == "copy":
            job.begin = span.first
            job.copied = {one.pts for one in stored[slice(*span.packets)] if one.pts >= span.first}
    return job


def write(
    container: InputContainer,
    out: OutputContainer,
    video: VideoStream,
    audio: AudioStream | None,
    job: Job,
    start: Fraction,
    end: Fraction,
) -> Written:
    """Write the clip as planned, and the sound of the same time.

    :param start, end: timestamps of the source, in seconds.
    :raises Unspliceable: the source turns out not to be as its header says.
    """
    tick = base.fraction(video.time_base)
    edges = EdgeEncoder(video, job.sets)
    for span in job.plan.spans:
        if span.kind == "encode":
            _encode(container, video, job, span, edges)
        else:
            for pts, frame in _near(container, video, job, span):
                job.looked_at[pts] = luma(frame)
    edges.finish()
    finish = _finish(video, job, end)
    zero = job.times[0]
    pictures = _Pictures(out, video, job, edges, finish)
    sound_packets: deque[Packet[Any]] = deque()
    sound = writer = None
    if audio is not None:
        sound = SoundReader(audio, sound_packets, zero * tick)
        writer = SoundWriter(out, audio, _FAST_SOUND)
    subtitles.carry(container, out, zero * tick, end)
    pictures.write_edge(before=job.begin)
    source = packets_from(container, video, audio, start, before_seconds=float(RUN_UP_SECONDS))
    left = len(job.copied)
    for packet in source:
        if packet.stream_index != video.index:
            sound_packets.append(packet)
            continue
        if packet.pts in job.copied:
            pictures.copy(packet)
            left -= 1
        if sound is not None and writer is not None and packet.is_keyframe and packet.pts is not None:
            for piece in sound.until(packet.pts * tick):
                writer.write(piece)
        if left == 0:
            break
    if left:
        raise Unspliceable("it reads otherwise the second time")
    pictures.write_edge()
    if sound is not None and writer is not None:
        read_sound(source, video, sound_packets, finish * tick)
        for piece in sound.rest(finish * tick):
            writer.write(piece)
        writer.finish((finish - zero) * tick)
    size = remux.shown_size(base.source_name(container), video, pictures.key)
    return Written(zero * tick, job.times[-1] * tick, finish * tick, size, pictures.count, audio is not None)


def _encode(
    container: InputContainer, video: VideoStream, job: Job, span: smart.Span, edges: EdgeEncoder
) -> None:
    """Decode and encode one span, and put aside what the check compares, from its neighbour too."""
    at = job.times.index(span.first)
    wanted = set(job.times[at : at + span.frames])
    looked_at = _looked_at(job)
    near = job.times[max(0, at - _LOOK_BEFORE) : at + span.frames + _LOOK_AFTER]
    first = True
    try:
        for pts, frame in decoded(container, video, near[0], near[-1] + 1):
            if pts in looked_at:
                job.looked_at[pts] = luma(frame)
            if pts in wanted:
                edges.encode(pts, frame, begins=first)
                first = False
                wanted.discard(pts)
    except (FFmpegError, InvalidMedia) as error:
        raise Unspliceable("its pictures cannot be decoded there") from error
    if wanted:
        raise Unspliceable("its pictures cannot be decoded there")


def _near(
    container: InputContainer, video: VideoStream, job: Job, span: smart.Span
) -> Iterator[tuple[int, Any]]:
    """The first frames of a clip that begins with a copied span: nothing else has decoded them."""
    if span.first == job.times[0]:
        last = job.times[min(_LOOK_AFTER, span.frames) - 1]
        yield from decoded(container, video, span.first, last + 1)


def _looked_at(job: Job) -> set[int]:
    """The times of the frames that are compared: those on either side of each splice, and the first."""
    found = set(job.times[:1])
    for span in job.plan.spans:
        at = job.times.index(span.first)
        found |= set(job.times[max(0, at - _LOOK_BEFORE) : at + _LOOK_AFTER])
    return found


def _finish(video: VideoStream, job: Job, end: Fraction) -> int:
    """Ticks: when the last frame ends, by the rule of mode `exact`."""
    tick, step = base.fraction(video.time_base), base.usual_step(video)
    stop, last = ticks(end, tick), job.times[-1]
    following = [one.pts for one in job.stored if one.pts > last and not one.hidden]
    stored = next(one for one in job.stored if one.pts == last)
    finish = min(following, default=last + (stored.duration or step))
    return min(finish, max(stop, last + step))


class _Pictures:
    """The pictures of the clip, from two encoders; timestamps begin at 0, and decoding times rise."""

    def __init__(
        self, out: OutputContainer, video: VideoStream, job: Job, edges: EdgeEncoder, finish: int
    ) -> None:
        self.count = 0
        self.key: Packet[Any] = Packet()
        """The first copied packet, as the source has it."""
        self._out = out
        self._job = job
        self._codec = job.sets.codec
        self._tick = base.fraction(video.time_base)
        self._stream = out.add_stream_from_template(video, opaque=True)
        if self._codec == "hevc" and out.format.name != "matroska":
            self._stream.codec_context.codec_tag = HVC1
        self._stream.codec_context.framerate = base.frame_rate(video) or Fraction(25)
        sets = nal.Sets(self._codec)
        for unit in (*job.sets.units, *edges.sets.units):
            sets.add(unit)
        self._stream.codec_context.extradata = sets.joined()
        self._edges = deque(edges.packets)
        order = [pts for pts, _, _ in edges.packets if pts < job.begin]
        order += [one.pts for one in job.stored if one.pts in job.copied]
        order += [pts for pts, _, _ in edges.packets if pts > job.begin]
        if sorted(order) != job.times:
            raise Unspliceable("its encoded pictures are not those that were asked for")
        self._dts = dict(zip(order, decoding_times(order, base.usual_step(video)), strict=True))
        ends = [*job.times[1:], finish]
        self._durations = {pts: after - pts for pts, after in zip(job.times, ends, strict=True)}

    def write_edge(self, *, before: int | None = None) -> None:
        """Write what was encoded, up to a time in ticks of the source."""
        while self._edges and (before is None or self._edges[0][0] < before):
            pts, data, key = self._edges.popleft()
            self._write(pts, data, key)

    def copy(self, packet: Packet[Any]) -> None:
        assert packet.pts is not None
        if packet.has_sidedata("new_extradata"):
            raise Unspliceable("its parameters change midway")
        units = nal.split(bytes(packet), self._job.length)
        kept = []
        for unit in units:
            if not nal.is_set(self._codec, unit):
                kept.append(unit)
            elif unit not in self._job.sets:
                raise Unspliceable("its parameters change midway")
        if packet.pts == self._job.begin:
            self.key = packet
            if self._codec == "hevc":
                kept = [nal.broken_link(unit) for unit in kept]
        self._write(packet.pts, nal.joined(kept), packet.is_keyframe)

    def _write(self, pts: int, data: bytes, key: bool) -> None:
        packet = Packet(data)
        packet.stream = self._stream
        packet.time_base = self._tick
        zero = self._job.times[0]
        packet.pts, packet.dts = pts - zero, self._dts[pts] - zero
        packet.duration = self._durations[pts]
        packet.is_keyframe = key
        self._out.mux(packet)
        self.count += 1


def decoding_times(order: Sequence[int], step: int) -> list[int]:
    """Decoding times for pictures in the order stored: strictly rising, none after its picture is shown.

    They are the times of showing, moved back by as many pictures as the stored order needs.

    :param order: when each is shown, all different.
    :param step: between those that would lie before the first.
    """
    shown = sorted(order)
    rank = {pts: at for at, pts in enumerate(shown)}
    depth = max(at - rank[pts] for at, pts in enumerate(order))
    before = [shown[0] - step * back for back in range(depth, 0, -1)]
    return (before + shown)[: len(order)]


def check(part: Path, job: Job) -> None:
    """Decode the clip around each splice, and compare it with the source.

    Copied frames must be the same to the bit, encoded ones alike, and every frame at its time.

    :param part: the written clip, not yet in its place.
    :raises Unspliceable: they are not.
    """
    source_tick = job.plan.tick
    with base.open_input(part, header_only=True) as container:
        video = base.video_stream(container)
        tick = base.fraction(video.time_base)
        zero = job.times[0]
        for number, times in enumerate(_windows(job)):
            first, last = (round((one - zero) * source_tick / tick) for one in (times[0], times[-1]))
            try:
                found = list(decoded(container, video, first, last + 1))
            except FFmpegError as error:
                raise Unspliceable(f"the check failed: splice {number + 1} cannot be decoded") from error
            if len(found) != len(times):
                words = f"{len(found)} frames came out where {len(times)} belong"
                raise Unspliceable(f"the check failed: at splice {number + 1} {words}")
            for pts, (at, frame) in zip(times, found, strict=True):
                if abs(at - (pts - zero) * source_tick / tick) > 1:
                    raise Unspliceable(f"the check failed: a frame at splice {number + 1} is at another time")
                _compare(job, pts, luma(frame))


def _windows(job: Job) -> list[list[int]]:
    """The times of the frames that are compared, split where any are not."""
    wanted = _looked_at(job) & job.looked_at.keys()
    windows: list[list[int]] = [[]]
    for pts in job.times:
        if pts in wanted:
            windows[-1].append(pts)
        elif windows[-1]:
            windows.append([])
    return [window for window in windows if window]


def _compare(job: Job, pts: int, found: Luma) -> None:
    wanted = job.looked_at[pts]
    at = float((pts - job.times[0]) * job.plan.tick)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise Unspliceable(f"the check failed: the frame at {at:.3f} s has another size or depth")
    if pts in job.copied:
        if not np.array_equal(found, wanted):
            raise Unspliceable(f"the check failed: the copied frame at {at:.3f} s differs from the source's")
    elif (likeness := ssim(found, wanted)) < _LEAST_SSIM:
        words = f"the encoded frame at {at:.3f} s has an SSIM of {likeness:.2f}"
        raise Unspliceable(f"the check failed: {words}")
