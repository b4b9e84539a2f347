"""Sound of a span of the source, to the sample: read once, and encoded for each output that wants it.

Sound that starts late, and gaps, become silence; so sound too starts at 0 and keeps its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from video.media import base
from video.media.chain import Chain
from video.media.encode import Encoding, new_stream, open_encoder
from video.media.seek import stamp_seconds

RUN_UP_SECONDS = Fraction(1, 2)
"""Audio before a cut that is decoded and dropped: a decoder's first packets sound of nothing before them."""

_LONGEST_PACKET_SECONDS = 1
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_PIECE = 1024
_NONE = ("", "", 0)


class SoundReader:
    """Decodes sound from one instant of the source to another; frames count their samples from 0 there."""

    def __init__(self, audio: AudioStream, packets: deque[Packet[Any]], zero: Fraction) -> None:
        """
        :param packets: where the reader of the source puts audio packets; taken out once decoded.
        :param zero: the source's timestamp, in seconds, that becomes 0.
        """
        self._audio = audio
        self._packets = packets
        self._zero = zero
        self._stop: Fraction | None = None
        self._next = Fraction(0)
        self._tick = base.fraction(audio.time_base)

    def until(self, seconds: Fraction) -> Iterator[AudioFrame]:
        """What is held up to this timestamp of the source, or up to a second less."""
        while self._packets and stamp_seconds(self._packets[0]) <= seconds - _LONGEST_PACKET_SECONDS:
            yield from self._decode(self._packets.popleft())

    def rest(self, end: Fraction) -> Iterator[AudioFrame]:
        """What is left, up to this timestamp of the source."""
        self._stop = end
        while self._packets:
            yield from self._decode(self._packets.popleft())
        yield from self._decode(None)

    def _decode(self, packet: Packet[Any] | None) -> Iterator[AudioFrame]:
        if packet is not None and stamp_seconds(packet) < self._zero - RUN_UP_SECONDS:
            return
        try:
            frames = self._audio.codec_context.decode(packet)
        except FFmpegError as error:  # what is missing becomes silence
            if isinstance(error, MemoryError):
                raise
            return
        for frame in frames:
            at = self._next if frame.pts is None else frame.pts * self._tick
            self._next = at + Fraction(frame.samples, frame.sample_rate)
            first = round((at - self._zero) * frame.sample_rate)
            skip = max(0, -first)
            keep = frame.samples
            if self._stop is not None:
                keep = min(keep, round((self._stop - at) * frame.sample_rate))
            if skip < keep:
                whole = skip == 0 and keep == frame.samples
                piece = frame if whole else _slice(frame, skip, keep)
                piece.pts = first + skip
                piece.time_base = Fraction(1, piece.sample_rate)
                yield piece


class SoundWriter:
    """Encodes what a `SoundReader` gives, by way of filters if there are any."""

    def __init__(
        self, out: OutputContainer, audio: AudioStream, encoding: Encoding, filters: str = ""
    ) -> None:
        """
        :param filters: as `video.media.chain` has them. Without, each sample keeps its place; with, sound is
            what they make of it, cut or filled up with silence to where it is to end.
        """
        self._out = out
        self._filters = filters
        self._chain: Chain[AudioFrame] | None = None
        self._resampler = AudioResampler()
        self._kind: tuple[str, str, int] | None = None
        self._refused: tuple[str, str, int] | None = None
        """A kind that cannot be converted; where there is such sound, there is silence."""
        self._written = 0
        """Samples from 0 to the end of what was encoded."""
        self._most: int | None = None
        context = audio.codec_context
        codec = encoding.audio
        rates = av.Codec(codec, "w").audio_rates or []
        layout = _LAYOUTS.get(context.channels, "stereo")
        stream = new_stream(
            out,
            codec,
            rate=context.sample_rate if context.sample_rate in rates else 48_000,
            bit_rate=max(96_000, encoding.audio_bit_rate * av.AudioLayout(layout).nb_channels),
            layout=layout,
            options=dict(encoding.audio_options),
        )
        assert isinstance(stream, AudioStream)
        open_encoder(stream, encoding.audio_options)
        self._stream = stream

    def write(self, frame: AudioFrame) -> None:
        """:param frame: not changed, so that others may have it, too."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind == self._refused:
            return
        if kind != self._kind:
            rate = self._stream.sample_rate
            done = 0 if self._kind is None else round(Fraction(frame.pts or 0, frame.sample_rate) * rate)
            self._flush()
            self._kind = kind
            self._resampler = AudioResampler(
                format=self._stream.format,
                layout=self._stream.layout,
                rate=rate,
                frame_size=_PIECE,  # AAC's; without it PyAV lets fitting frames pass and ignores the options
                # Fill and trim by timestamps, without stretching; and expect the first sample at `done`.
                options={"async": "1", "first_pts": str(done)},
            )
        try:
            pieces = self._resampler.resample(frame)
        except FFmpegError as error:  # what damage makes of a header need not be a kind of sound at all
            if isinstance(error, MemoryError):
                raise
            self._refused, self._kind, self._resampler = kind, _NONE, AudioResampler()
            return
        for piece in pieces:
            self._pass(piece)

    def finish(self, length: Fraction, filtered: Fraction | None = None) -> None:
        """Write what is left; there is silence if there was nothing.

        :param length: seconds from 0 to where what was written is to end.
        :param filtered: seconds to where what comes out of the filters is to end; None: the same.
        """
        if self._kind in (None, _NONE):
            # The last samples; what comes before them is filled up like any gap.
            pts = max(0, round(length * self._stream.sample_rate) - _PIECE)
            self.write(self._silence(_PIECE, pts))
        self._flush()
        if self._chain is not None:
            rate = self._stream.sample_rate
            self._most = round((length if filtered is None else filtered) * rate)
            for frame in self._chain.push(None):
                self._count(frame)
            while (missing := self._most - self._written) > 0:
                self._count(self._silence(min(missing, _PIECE)))
        self._out.mux(self._stream.encode(None))

    def _flush(self) -> None:
        for rest in self._resampler.resample(None):
            self._pass(rest)

    def _pass(self, frame: AudioFrame) -> None:
        """A frame of the encoder's own kind, without gaps before it."""
        if not self._filters:
            self._encode(frame)
            return
        if self._chain is None:
            kind = self._stream
            wanted = f"sample_fmts={kind.format.name}:sample_rates={kind.sample_rate}"
            self._chain = Chain(self._filters, frame, f"{wanted}:channel_layouts={kind.layout.name}")
        for filtered in self._chain.push(frame):
            self._count(filtered)

    def _encode(self, frame: AudioFrame) -> None:
        """Encode a frame at its time; what was written is not written again, where sound changes its kind."""
        pts = frame.pts or 0
        if pts < self._written:
            if pts + frame.samples <= self._written:
                return
            frame = _slice(frame, self._written - pts, frame.samples)
            frame.pts, frame.time_base = self._written, Fraction(1, frame.sample_rate)
        self._written = max(pts, self._written) + frame.samples
        self._out.mux(self._stream.encode(frame))

    def _count(self, frame: AudioFrame) -> None:
        """Encode a frame as the next one."""
        if self._most is not None and self._written + frame.samples > self._most:
            if self._written >= self._most:
                return
            frame = _slice(frame, 0, self._most - self._written)
        frame.pts, frame.time_base = self._written, Fraction(1, frame.sample_rate)
        self._written += frame.samples
        self._out.mux(self._stream.encode(frame))

    def _silence(self, samples: int, pts: int = 0) -> AudioFrame:
        silence = AudioFrame(self._stream.format.name, self._stream.layout, samples)
        for plane in base.sound_planes(silence):
            plane.update(bytes(plane.buffer_size))
        silence.sample_rate = self._stream.sample_rate
        silence.pts, silence.time_base = pts, Fraction(1, silence.sample_rate)
        return silence


def _slice(frame: AudioFrame, start: int, stop: int) -> AudioFrame:
    """Samples `start` to `stop` of a frame, as a frame."""
    width = frame.format.bytes * (1 if frame.format.is_planar else frame.layout.nb_channels)
    piece = AudioFrame(frame.format.name, frame.layout, stop - start)
    for old, new in zip(base.sound_planes(frame), base.sound_planes(piece), strict=True):
        wanted = bytes(memoryview(old)[start * width : stop * width])
        new.update(wanted.ljust(new.buffer_size, b"\0"))
    piece.sample_rate = frame.sample_rate
    return piece
