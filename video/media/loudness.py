"""How loud a file is: by ITU-R BS.1770 and EBU R 128, as FFmpeg's filter ebur128 has them."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from av.container import InputContainer
from av.error import EOFError as EndOfStream
from av.error import FFmpegError
from av.filter import Graph


class Loudness:
    """The loudness of the first sound of a file."""

    def __init__(self, container: InputContainer) -> None:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        self.stream = streams[0] if streams else None
        self._graph: Graph | None = None
        self._shape: tuple[Any, ...] = ()
        self._words: dict[str, str] = {}

    @property
    def loudness(self) -> float | None:
        """LUFS."""
        value = float(self._words.get("lavfi.r128.I", "nan"))
        # -70 is the gate below which nothing counts.
        return value if math.isfinite(value) and value > -70 else None

    @property
    def true_peak(self) -> float | None:
        """dBTP."""
        value = float(self._words.get("lavfi.r128.true_peak", "nan"))
        return 20 * math.log10(value) if self.loudness is not None and value > 0 else None

    def add(self, packet: Any) -> None:
        assert self.stream is not None
        try:
            for frame in self.stream.codec_context.decode(packet):
                self._push(frame)
        except FFmpegError as error:  # a damaged place, for which decoders have many words, is passed over
            if isinstance(error, MemoryError):
                raise

    def _push(self, frame: Any) -> None:
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._graph is None:
            self._shape = shape
            self._graph = Graph()
            source = self._graph.add_abuffer(
                sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name
            )
            loud, sink = self._graph.add("ebur128", "metadata=1:peak=true"), self._graph.add("abuffersink")
            self._graph.link_nodes(source, loud, sink).configure()
        if shape != self._shape:
            return  # what changes its kind midway is judged by its beginning
        frame.pts = None
        self._graph.push(frame)
        with contextlib.suppress(BlockingIOError, EndOfStream):
            while True:
                self._words = dict(self._graph.pull().metadata) or self._words
