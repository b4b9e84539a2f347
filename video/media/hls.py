"""HTTP live streaming: renditions of one video packed for players that change between them.

Of each rendition there is one file of fragments and one playlist that says where in it each segment lies; a
master playlist names them all. Nothing is encoded here. Source: RFC 8216.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.container import InputContainer
from av.packet import Packet

from video.media import base
from video.media.codecs import SEGMENT_SECONDS
from video.media.encode import HVC1, check

MASTER = "master.m3u8"


def package(renditions: Mapping[str, Path], folder: Path) -> list[Path]:
    """Write playlists and fragments of these files into a folder that is there.

    :param renditions: by name, such as `720p`; with key frames at the same times, the best one first; all of
        them with sound or none.
    :return: what was written, the master playlist first.
    :raises OutputError: what was written does not read back; other errors of writing are for the caller to
        explain, by `base.output_errors`.
    """
    with contextlib.ExitStack() as stack:
        inputs = [stack.enter_context(base.open_input(path)) for path in renditions.values()]
        parts = []
        for at, (name, one) in enumerate(zip(renditions, inputs, strict=True)):
            sound = f",a:{at}" if one.streams.audio else ""
            parts.append(f"v:{at}{sound},name:{name}")
        options = {
            "hls_time": str(SEGMENT_SECONDS),
            "hls_playlist_type": "vod",
            "hls_segment_type": "fmp4",
            "hls_flags": "single_file+independent_segments",
            "hls_segment_filename": "%v.m4s",
            "var_stream_map": " ".join(parts),
            "master_pl_name": MASTER,
        }
        out = stack.enter_context(
            # It opens each file by a name of ours, so that a `%` in the folder's means nothing.
            av.open("%v.m3u8", "w", format="hls", container_options=options, io_open=_opener(folder))
        )
        heard = bool(inputs[0].streams.audio)
        streams = {}
        for at, one in enumerate(inputs):
            for stream in (base.video_stream(one), *one.streams.audio[:1]):
                copy = out.add_stream_from_template(stream, opaque=True)
                if stream.codec_context.name == "hevc":
                    copy.codec_context.codec_tag = HVC1
                streams[at, stream.index] = copy
        queues = [_packets(at, one) for at, one in enumerate(inputs)]
        times: list[list[Fraction]] = [[] for _ in inputs]
        for _, at, packet in heapq.merge(*queues, key=lambda one: one[0]):
            stream = streams[at, packet.stream_index]
            if stream.type == "video":
                times[at].append((packet.pts or 0) * base.fraction(packet.time_base))
            packet.stream = stream
            out.mux(packet)
    for (name, path), shown in zip(renditions.items(), times, strict=True):
        seconds = max(shown) - min(shown)
        check(folder / f"{name}.m4s", path, frames=len(shown), seconds=seconds, has_audio=heard)
    return [folder / MASTER, *(folder / f"{name}{end}" for name in renditions for end in (".m3u8", ".m4s"))]


def _opener(folder: Path) -> Callable[..., BinaryIO]:
    def opened(url: str, *_: Any) -> BinaryIO:
        return (folder / os.path.basename(url)).open("wb")

    return opened


def _packets(at: int, container: InputContainer) -> Iterator[tuple[Fraction, int, Packet[Any]]]:
    streams = (base.video_stream(container), *container.streams.audio[:1])
    for packet in base.packets(container, *streams):
        stamp = packet.pts if packet.dts is None else packet.dts
        yield (stamp or 0) * base.fraction(packet.time_base), at, packet
