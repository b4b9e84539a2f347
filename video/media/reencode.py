"""The exact way of cutting: decode from the key frame before, keep the frames asked for, encode them anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video.media import base, subtitles
from video.media.encode import RUN_UP_SECONDS, PictureWriter, SoundWriter, Written
from video.media.seek import FrameDecoder, packets_from, read_sound, refuse_empty, ticks


def write(
    container: InputContainer,
    out: OutputContainer,
    video: VideoStream,
    audio: AudioStream | None,
    start: Fraction,
    end: Fraction,
) -> Written:
    """Encode the frames that begin from `start` on and before `end`, and the sound of the same time.

    :param start, end: timestamps of the source, in seconds.
    """
    tick = base.fraction(video.time_base)
    first, stop = ticks(start, tick), ticks(end, tick)
    source = packets_from(container, video, audio, start, before_seconds=float(RUN_UP_SECONDS))
    decoder = FrameDecoder(container, video, first)
    sound_packets: deque[Packet[Any]] = deque()
    pictures: PictureWriter | None = None
    sound: SoundWriter | None = None
    zero = last = duration = 0
    following: int | None = None
    for pts, frame in _frames(source, video, decoder, sound_packets):
        if pts < first:
            continue
        if pts >= stop:
            following = pts
            break
        if pictures is None:
            zero = pts
            pictures = PictureWriter(out, video, frame)
            if audio is not None:
                sound = SoundWriter(out, audio, sound_packets, zero * tick)
            subtitles.carry(container, out, zero * tick, end)
        last, duration = pts, frame.duration
        pictures.write(pts - zero, frame)
        if sound is not None:
            sound.write_until(pts * tick)
    if pictures is None:
        refuse_empty(container, start, end, damaged=decoder.damaged > 0)

    step = base.usual_step(video)
    finish = last + (duration or step) if following is None else following
    # A picture that stands still for longer than a usual frame ends where the clip was to end.
    finish = min(finish, max(stop, last + step))
    pictures.finish(finish - zero)
    if sound is not None:
        read_sound(source, video, sound_packets, finish * tick)
        sound.finish(finish * tick)
    size = (pictures.fit.width, pictures.fit.height)
    return Written(zero * tick, last * tick, finish * tick, size, pictures.frames, audio is not None)


def _frames(
    source: Iterator[Packet[Any]], video: VideoStream, decoder: FrameDecoder, others: deque[Packet[Any]]
) -> Iterator[tuple[int, VideoFrame]]:
    """Decoded frames with their timestamps; packets of other streams are put aside."""
    for packet in source:
        if packet.stream_index == video.index:
            yield from decoder.decode(packet)
        else:
            others.append(packet)
    yield from decoder.decode(None)
