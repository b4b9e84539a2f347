"""The fast way of cutting: stored pictures and sound are copied, from a key frame on, without decoding."""

from __future__ import annotations

import contextlib
from collections import deque
from fractions import Fraction
from typing import Any

from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from video.errors import UnsupportedMedia
from video.media import base, mp4, subtitles
from video.media.encode import Written
from video.media.seek import (
    TOLERANCE_SECONDS,
    packets_from,
    read_sound,
    refuse_empty,
    stamp_seconds,
    stored_times_only,
    ticks,
)


def write(
    container: InputContainer,
    out: OutputContainer,
    video: VideoStream,
    audio: AudioStream | None,
    start: Fraction,
    end: Fraction,
) -> Written:
    """Copy from the last key frame at or before `start` to `end`, and the sound of the same time.

    Pictures are stored in the order in which they depend on each other, not the one in which they are
    shown: what follows `end` is copied too where something before needs it, and then all up to there, so
    that no picture is missing in between.

    :param start, end: timestamps of the source, in seconds.
    """
    name = base.source_name(container)
    tick = base.fraction(video.time_base)
    needed = ticks(end, tick)
    if stored_times_only(container) and video.codec_context.reorder_depth:
        cause = "does not say when its pictures are shown, as AVI files with B-frames never do"
        raise UnsupportedMedia(cause, subject=name, cure="Use mode exact.")
    source = packets_from(container, video, audio, start)
    tracks = _add_tracks(out, name, video, audio)
    pictures = tracks[0]
    sound_packets: deque[Packet[Any]] = deque()
    waiting: list[Packet[Any]] = []
    size = (0, 0)
    following: list[int] = []
    for packet in source:
        if packet.stream_index != video.index:
            sound_packets.append(packet)
            continue
        if packet.pts is None:
            raise UnsupportedMedia("has no timestamps to copy", subject=name, cure="Use mode exact.")
        if not pictures.begun:
            if not packet.is_keyframe:
                continue
            if packet.pts >= needed:
                break
            size = shown_size(name, video, packet)
            for track in tracks:
                track.begin(packet.pts * tick)
            subtitles.carry(container, out, packet.pts * tick, end)
        elif packet.pts < pictures.zero:
            continue  # shown before the key frame, and in need of pictures before it
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp >= needed:
            following.append(packet.pts)
            break
        waiting.append(packet)
        if packet.pts < needed:
            for one in waiting:
                pictures.write(one)
            waiting.clear()
            needed = max(needed, pictures.last + 1)
        if audio is not None:
            tracks[1].write_while_before(sound_packets, stamp * tick)
    following += [packet.pts for packet in waiting if packet.pts is not None]
    finish = pictures.end
    if following:
        finish = min(finish, *following)
    if not pictures.begun or finish * tick <= start + TOLERANCE_SECONDS:
        refuse_empty(container, start, end, damaged=False)
    pictures.flush()
    if audio is not None:
        read_sound(source, video, sound_packets, finish * tick)
        tracks[1].write_while_before(sound_packets, finish * tick)
        tracks[1].flush()
    zero, last = pictures.zero * tick, pictures.last * tick
    sound = any(track.count for track in tracks[1:])  # there may be none in this span
    return Written(zero, last, finish * tick, size, pictures.count, sound)


class _Track:
    """One copied stream: timestamps shifted to begin at 0, decoding times whole and rising."""

    def __init__(self, out: OutputContainer, template: VideoStream | AudioStream, step: int) -> None:
        self.begun = False
        self.zero = 0
        """Ticks: the timestamp that becomes 0."""
        self.last = -(2**62)
        """Ticks: the latest timestamp written, of the source."""
        self.end = 0
        """Ticks: when it ends."""
        self.count = 0
        self._out = out
        self._tick = base.fraction(template.time_base)
        self._step = step
        self._stream = out.add_stream_from_template(template, opaque=True)
        self._undated: list[Packet[Any]] = []
        self._last_dts = -(2**62)

    def begin(self, seconds: Fraction) -> None:
        """:param seconds: the timestamp of the source that becomes 0."""
        self.zero = round(seconds / self._tick)
        self.begun = True

    def write(self, packet: Packet[Any]) -> None:
        pts = packet.pts or 0
        self.count += 1
        if pts > self.last:
            self.last = pts
            self.end = pts + (packet.duration or self._step)
        self._undated.append(packet)
        if packet.dts is not None:
            self._write_undated(packet.dts)

    def flush(self) -> None:
        """Write what still waits for a decoding time."""
        if self._undated:
            self._write_undated((self._undated[0].pts or 0) - self._step)

    def _write_undated(self, dts: int) -> None:
        """Matroska stores no decoding times; FFmpeg works them out, but not for the first after a seek."""
        for back, packet in enumerate(self._undated):
            packet.stream = self._stream
            wanted = dts - (len(self._undated) - 1 - back) * self._step - self.zero
            packet.dts = self._last_dts = max(wanted, self._last_dts + 1)
            packet.pts = max((packet.pts or 0) - self.zero, packet.dts)
            packet.duration = packet.duration or self._step  # mp4 hides a last picture that lasts 0
            self._out.mux(packet)
        self._undated.clear()

    def write_while_before(self, packets: deque[Packet[Any]], end: Fraction) -> None:
        """Write packets that begin from 0 on and before `end`, a timestamp of the source in seconds."""
        while self.begun and packets and stamp_seconds(packets[0]) < end:
            packet = packets.popleft()
            if packet.pts is not None and packet.pts >= self.zero:
                self.write(packet)


def _add_tracks(
    out: OutputContainer, name: str, video: VideoStream, audio: AudioStream | None
) -> list[_Track]:
    codecs = " and ".join(one.codec_context.name for one in (video, audio) if one is not None)
    try:
        tracks = [_Track(out, video, base.usual_step(video))]
        if audio is not None:
            context = audio.codec_context
            frame_seconds = Fraction(context.frame_size or 1024, context.sample_rate or 48_000)
            tracks.append(_Track(out, audio, round(frame_seconds / base.fraction(audio.time_base))))
        if video.codec_context.name == "hevc" and out.format.name != "matroska":
            out.streams.video[0].codec_context.codec_tag = "hvc1"  # Apple's players refuse the default
        out.streams.video[0].codec_context.framerate = base.frame_rate(video) or Fraction(25)
    except ValueError as error:
        raise UnsupportedMedia(
            f"its {codecs} cannot be copied into {out.format.name}",
            subject=name,
            cure="Write .mkv, or use mode exact.",
        ) from error
    return tracks


def shown_size(name: str, video: VideoStream, key: Packet[Any]) -> tuple[int, int]:
    """(width, height) as shown. FFmpeg tells the rotation with decoded frames only, so one may be decoded."""
    context = video.codec_context
    turned = 0
    if not mp4.surely_upright(name):
        with contextlib.suppress(FFmpegError):
            frames = context.decode(key) or context.decode(None)
            turned = base.rotation(frames[0]) if frames else 0
    return base.displayed_size(
        context.width, context.height, base.fraction(video.sample_aspect_ratio), turned
    )
