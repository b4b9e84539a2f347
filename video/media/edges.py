"""The edges of a smart cut: their pictures, decoded and encoded anew in the source's own codec."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from video import scope
from video.media import base, nal
from video.media.encode import avx512_is_unsafe, x265_threads
from video.media.nal import Unspliceable
from video.media.seek import FrameDecoder, packets_from

Luma = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""(height, width): brightness, in as many bits as the source has."""

# Finer than clips that are encoded anew, since a difference would show beside copied pictures; and in less
# time, since a few pictures may take more bytes.
_X264 = {"preset": "superfast", "crf": "18"}
_X264_PARAMS = "annexb=1:repeat-headers=1"
# HEVC is dear: 24 frames of 720p took 73 ms each with preset superfast, 38 with ultrafast, and 28 with blocks
# of 16 pixels, all of about the same likeness (SSIM 0.980 at least) and size; x264 veryfast takes 15.
_X265 = {"preset": "ultrafast", "crf": "18"}
_X265_PARAMS = "annexb=1:repeat-headers=1:open-gop=0:info=0:log-level=none"
_X265_SMALL_BLOCKS = ":ctu=16:max-tu-size=16:qg-size=16"
_LARGEST_OF_LEVEL_4, _FASTEST_OF_LEVEL_4 = 2_228_224, 60
"""Pixels, and pictures a second. Levels above ask for blocks of 32 pixels or more (H.265, A.4.1)."""

# All pictures are asked for as P ones, stored in the order shown; but the header says that as many may wait
# for others as in the source. Else players would change the delay of their output in midstream, and FFmpeg
# would guess falling decoding times for Matroska, which stores none.
_REORDERING = {
    0: "bframes=0",
    1: "bframes=1:b-adapt=0:b-pyramid=0",
    2: "bframes=3:b-adapt=0:b-pyramid={pyramid}",
}

# Only what x264 must be held to: it takes the lowest profile that does by itself.
_PROFILES = {"Baseline": "baseline", "Constrained Baseline": "baseline", "Main": "main", "High": "high"}


def decoded(
    container: InputContainer, video: VideoStream, first: int, stop: int
) -> Iterator[tuple[int, VideoFrame]]:
    """(timestamp, frame) of the pictures that are shown from `first` on and before `stop`, both in ticks."""
    tick = base.fraction(video.time_base)
    decoder = FrameDecoder(container, video, first)
    context = video.codec_context
    try:
        for packet in packets_from(container, video, None, first * tick):
            for pts, frame in decoder.decode(packet):
                if pts >= stop:
                    return
                if pts >= first:
                    yield pts, frame
        for pts, frame in decoder.decode(None):
            if first <= pts < stop:
                yield pts, frame
    finally:
        context.flush_buffers()  # so that it can decode from another place


def luma(frame: VideoFrame) -> Luma:
    """The brightness of a frame, copied."""
    plane = frame.planes[0]
    deep = frame.format.components[0].bits > 8
    rows: Luma = np.frombuffer(memoryview(plane), "<u2" if deep else "u1").reshape(plane.height, -1)
    return rows[:, : plane.width].copy()


class EdgeEncoder:
    """Encodes pictures as the source's own stream has them: codec, profile, pixel format, colours, times.

    Its packets hold no parameter sets; those are in `sets`, under numbers that the source does not use.
    """

    def __init__(self, video: VideoStream, sets: nal.Sets) -> None:
        """
        :param sets: of the source.
        :raises Unspliceable: no encoder here makes such a stream.
        """
        self.sets = nal.Sets(sets.codec)
        self.packets: list[tuple[int, bytes, bool]] = []
        """(timestamp, units with start codes, whether it is a key frame) in the order stored and shown."""
        self._codec = sets.codec
        self._numbers = sets.free()
        self._video = video
        self._tick = base.fraction(video.time_base)
        self._context: VideoCodecContext | None = None
        self._kind: tuple[str, int, int] | None = None

    def encode(self, pts: int, frame: VideoFrame, *, begins: bool) -> None:
        """:param pts: ticks of the source, rising.
        :param begins: nothing from here on may need what was encoded before.
        :raises Unspliceable: this frame does not fit such a stream.
        """
        if frame.interlaced_frame:
            raise Unspliceable("it is interlaced")
        kind = (frame.format.name, frame.width, frame.height)
        if self._context is None:
            self._kind = kind
            self._context = self._open(frame)
        if kind != self._kind:
            raise Unspliceable("its pictures change their size or format midway")
        frame.pts, frame.time_base = pts, self._tick
        frame.pict_type = PictureType.I if begins else PictureType.P
        self._take(self._context.encode(frame))

    def finish(self) -> None:
        if self._context is not None:
            self._take(self._context.encode(None))

    def _open(self, frame: VideoFrame) -> VideoCodecContext:
        source = self._video.codec_context
        name = "libx264" if self._codec == "h264" else "libx265"
        try:
            codec = av.Codec(name, "w")
        except ValueError:
            raise Unspliceable(f"there is no encoder {name} here") from None
        if frame.format.name not in {one.name for one in codec.video_formats or ()}:
            raise Unspliceable(f"{name} writes no {frame.format.name}")
        if frame.width % 2 or frame.height % 2:
            raise Unspliceable("its size is odd")
        context = CodecContext.create(codec, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name
        context.time_base = self._tick
        context.framerate = base.frame_rate(self._video) or Fraction(25)
        context.sample_aspect_ratio = source.sample_aspect_ratio or Fraction(1)
        context.color_range = frame.color_range
        context.colorspace = frame.colorspace
        context.color_primaries = frame.color_primaries
        context.color_trc = frame.color_trc
        context.thread_count = scope.native_threads()
        context.thread_type = "FRAME"
        context.options = self._options(context, source)
        try:
            context.open()
        except av.FFmpegError as error:
            raise Unspliceable(f"{name} refuses its parameters ({error.strerror})") from error
        return context

    def _options(self, context: VideoCodecContext, source: VideoCodecContext) -> dict[str, str]:
        reordering = _REORDERING[min(2, source.reorder_depth)]
        if self._codec == "h264":
            reordering = reordering.format(pyramid="normal")
            params = f"{_X264_PARAMS}:{reordering}:sps-id={self._numbers[0]}"
            if avx512_is_unsafe(context.width):
                params += ":asm=AVX2"
            options = {**_X264, "x264-params": params, "forced-idr": "1"}
            if source.profile in _PROFILES:
                options["profile"] = _PROFILES[source.profile]
            if source.level > 0:
                options["level"] = str(source.level)
            return options
        # The level is left to x265, which refuses more pictures than one allows; hvcC holds the highest.
        params = f"{_X265_PARAMS}:{reordering.format(pyramid=1)}:{x265_threads(scope.native_threads())}"
        if context.width * context.height <= _LARGEST_OF_LEVEL_4 and context.framerate <= _FASTEST_OF_LEVEL_4:
            params += _X265_SMALL_BLOCKS
        return {**_X265, "x265-params": params, "forced-idr": "1"}

    def _take(self, packets: list[Packet[Any]]) -> None:
        for packet in packets:
            assert packet.pts is not None
            units = []
            for found in nal.split(bytes(packet), 0):
                unit = found if self._codec == "h264" else nal.renumbered(found, self._numbers)
                if nal.is_set(self._codec, unit):
                    self.sets.add(unit)
                else:
                    units.append(unit)
            self.packets.append((packet.pts, nal.joined(units), packet.is_keyframe))
