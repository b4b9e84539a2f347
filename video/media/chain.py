"""Filters as text, in libavfilter's syntax, between where frames come in and where they come out.

    scale=640:360,hue=h=20
    split[a][b];[a]gblur=20[soft];[b]scale=iw/2:-2[small];[soft][small]overlay=(W-w)/2:(H-h)/2

What has no label takes the frames that come in, or gives those that come out; `[in]` and `[out]` are their
labels. PyAV has no reader of such texts, hence this one. Source: FFmpeg's manual, "Filtergraph syntax".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Generic, TypeVar

from av.audio.frame import AudioFrame
from av.error import EOFError as EndOfStream
from av.error import FFmpegError
from av.filter import Filter, Graph
from av.filter.context import FilterContext
from av.video.frame import VideoFrame

from video import scope
from video.errors import ConfigError

AnyFrame = TypeVar("AnyFrame", VideoFrame, AudioFrame)

_DYNAMIC = {"inputs": 1, "outputs": 2}  # AVFILTER_FLAG_DYNAMIC_INPUTS and _OUTPUTS
_SPACE = " \n\t\r"


@dataclass(slots=True)
class _Node:
    """One filter of a text."""

    name: str
    arguments: str | None
    takes: list[str]
    """Labels of its inputs."""
    gives: list[str] = field(default_factory=list)


class Chain(Generic[AnyFrame]):
    """Filters that frames of one kind, size and rate pass through.

    :raises ConfigError: they cannot be set up, or fail on a frame.
    """

    def __init__(self, text: str, first: AnyFrame, wanted: str | None) -> None:
        """
        :param first: what frames are like; its time base counts for all.
        :param wanted: arguments of the filter `format`, or `aformat`, which what comes out must meet.
        """
        self._text = text
        self._graph = graph = Graph()
        graph.threads = scope.native_threads()
        try:
            if isinstance(first, VideoFrame):
                self._source, last = picture_source(graph, first), graph.add("buffersink")
            else:
                self._source, last = sound_source(graph, first), graph.add("abuffersink")
            self._sink = last
            if wanted is not None:
                last = graph.add("format" if isinstance(first, VideoFrame) else "aformat", wanted)
                last.link_to(self._sink)
            _build(graph, _parse(text), self._source, last)
            graph.configure()
        except (FFmpegError, ValueError) as error:
            raise self._refusal(error) from error

    def push(self, frame: AnyFrame | None) -> Iterator[AnyFrame]:
        """What comes out when this frame goes in; None: no more will come."""
        try:
            with contextlib.suppress(EndOfStream):  # filters such as `trim` take no more than they need
                self._source.push(frame)
            while True:
                try:
                    out = self._sink.pull()
                except (BlockingIOError, EndOfStream):
                    return
                yield out  # type: ignore[misc]  # of the kind that its source takes
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> ConfigError:
        words = error.strerror if isinstance(error, FFmpegError) else str(error)
        return ConfigError(
            f"cannot be used as filters ({words or type(error).__name__})",
            subject=self._text,
            cure="Check their names and options; some that FFmpeg has are not in this build of it.",
        )


def picture_source(graph: Graph, like: VideoFrame) -> FilterContext:
    """Where pictures like this one go in."""
    return graph.add(
        "buffer",
        video_size=f"{like.width}x{like.height}",
        pix_fmt=like.format.name,
        time_base=str(like.time_base),
        pixel_aspect="1/1",
        colorspace=str(like.colorspace),
        range=str(like.color_range),
    )


def sound_source(graph: Graph, like: AudioFrame) -> FilterContext:
    """Where sound like this goes in."""
    return graph.add_abuffer(
        sample_rate=like.sample_rate,
        format=like.format.name,
        layout=like.layout.name,
        time_base=like.time_base or Fraction(1, like.sample_rate),
    )


def _build(graph: Graph, chains: list[list[_Node]], source: FilterContext, sink: FilterContext) -> None:
    gives: dict[str, tuple[FilterContext, int]] = {"in": (source, 0)}
    takes: list[tuple[str, FilterContext, int]] = [("out", sink, 0)]

    def give(label: str, context: FilterContext, pad: int) -> None:
        if label in gives:
            raise ValueError(f"two outputs are [{label}]")
        gives[label] = context, pad

    for chain in chains:
        before: FilterContext | None = None
        for node in chain:
            kind = Filter(node.name)
            context = graph.add(kind, node.arguments)
            labels = node.takes
            if before is not None:
                before.link_to(context, 0, len(labels))
            elif not labels and _has_pads(kind, "inputs"):
                labels = ["in"]
            takes += [(label, context, pad) for pad, label in enumerate(labels)]
            for pad, label in enumerate(node.gives):
                give(label, context, pad)
            before = None if node.gives else context
        if before is not None and _has_pads(kind, "outputs"):
            give("out", before, 0)
    for label, context, pad in takes:
        if label not in gives:
            raise ValueError(f"nothing is [{label}], or two take it")
        giver, number = gives.pop(label)
        giver.link_to(context, number, pad)
    if gives:
        raise ValueError(f"nothing takes [{next(iter(gives))}]")


def _has_pads(kind: Filter, side: str) -> bool:
    """Whether a filter has inputs, or outputs; those of some depend on their arguments."""
    return bool(kind.flags & _DYNAMIC[side] or getattr(kind, side))


def _parse(text: str) -> list[list[_Node]]:
    """Chains of filters; a text that is wrong is a ValueError that says where."""
    chains: list[list[_Node]] = [[]]
    at = 0
    while True:
        takes, at = _labels(text, at)
        name, at = _token(text, at, "=,;[")
        name = name.partition("@")[0]  # a name of one's own for it, which nothing here uses
        if not name:
            raise ValueError(f"no filter at {text[at : at + 20]!r}")
        arguments: str | None = None
        if text[at : at + 1] == "=":
            arguments, at = _token(text, at + 1, "[],;")
        node = _Node(name, arguments, takes)
        node.gives, at = _labels(text, at)
        chains[-1].append(node)
        if at >= len(text):
            return chains
        if text[at] not in ",;":
            raise ValueError(f"{text[at : at + 20]!r} is not expected there")
        if text[at] == ";":
            chains.append([])
        at += 1


def _labels(text: str, at: int) -> tuple[list[str], int]:
    labels = []
    at = _skip(text, at)
    while text[at : at + 1] == "[":
        end = text.find("]", at)
        if end < 0:
            raise ValueError(f"{text[at : at + 20]!r} has no end")
        labels.append(text[at + 1 : end])
        at = _skip(text, end + 1)
    return labels, at


def _token(text: str, at: int, ends: str) -> tuple[str, int]:
    """Up to one of `ends`, without its outer quotes and backslashes; those inside are the filter's own."""
    at = _skip(text, at)
    found, kept = "", 0
    while at < len(text) and text[at] not in ends:
        if text[at] == "\\" and at + 1 < len(text):
            found += text[at + 1]
            at, kept = at + 2, len(found)
        elif text[at] == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise ValueError(f"{text[at : at + 20]!r} has no end")
            found += text[at + 1 : end]
            at, kept = end + 1, len(found)
        else:
            found += text[at]
            at += 1
    return found[:kept] + found[kept:].rstrip(_SPACE), at


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
