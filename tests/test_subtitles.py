"""Subtitles of a clip: each text is shown when the source shows it, and not one is lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from av.packet import Packet

from tests.conftest import shared
from tests.media_files import numbers, tone, write_video
from video.media import base
from video.media.cut import cut
from video.models import Mode

Text = tuple[float, float, str]
"""(from, to, words), in seconds."""

TEXTS: list[Text] = [
    (0.1, 0.4, "before"),
    (0.5, 1.5, "at the start"),
    (1.6, 1.9, "zwei Wörter"),
    (2.3, 3.4, "at the end"),
    (3.5, 3.9, "after"),
]
FORMS = {
    "subrip": ("a.mkv", lambda words: words.encode()),
    "webvtt": ("a.mkv", lambda words: words.encode()),
    "ass": ("a.mkv", lambda words: f"0,0,Default,,0,0,0,,{words}".encode()),
    "mov_text": ("a.mp4", lambda words: len(words.encode()).to_bytes(2, "big") + words.encode()),
}
ASS_HEADER = b"\r\n".join((
    b"[Script Info]", b"ScriptType: v4.00+", b"", b"[Events]",
    b"Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text", b"",
))  # fmt: skip


def write_subtitled(folder: Path, form: str, texts: Sequence[Text] = TEXTS, *, language: str = "deu") -> Path:
    """100 numbered frames at 25 a second with key frames at 0, 12, 24, ..., sound, and texts."""
    name, encode = FORMS[form]
    plain = write_video(folder / "plain.mp4", frames=100, sound=tone(0, 4, 4), b_frames=3)
    with av.open(str(plain)) as source, av.open(str(folder / name), "w") as out:
        streams: dict[int, Any] = {
            stream.index: out.add_stream_from_template(stream, opaque=True) for stream in source.streams
        }
        words = out.add_stream(form)
        words.codec_context.subtitle_header = ASS_HEADER
        if form == "ass":
            words.codec_context.extradata = ASS_HEADER
        words.codec_context.time_base = Fraction(1, 1000)
        words.metadata["language"] = language
        packets = [(packet.dts * packet.time_base, packet) for packet in source.demux() if packet.size]
        for start, end, text in texts:
            packet = Packet(encode(text))
            packet.stream, packet.time_base = words, Fraction(1, 1000)
            packet.pts = packet.dts = round(start * 1000)
            packet.duration = round((end - start) * 1000)
            packets.append((Fraction(start), packet))
        for _, packet in sorted(packets, key=lambda one: one[0]):
            if packet.stream is not words:
                packet.stream = streams[packet.stream.index]
            out.mux(packet)
    plain.unlink()
    return folder / name


def texts_of(path: Path) -> list[Text]:
    """Marks for fonts, which FFmpeg's decoders add, are left out."""
    found: list[Text] = []
    with av.open(str(path)) as container:
        (stream,) = container.streams.subtitles
        for packet in container.demux(stream):
            texts = stream.codec_context.decode2(packet) if packet.size else None
            for one in texts or ():
                start = float(packet.pts * packet.time_base)
                text = re.sub(r"\{.*?\}", "", one.dialogue.decode())
                if text:
                    found.append((start, start + float(packet.duration * packet.time_base), text))
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("mode", ["exact", "smart", "copy"])
def test_texts_keep_their_times(tmp_path: Path, form: str, suffix: str, mode: Mode) -> None:
    source = write_subtitled(tmp_path, form)
    clip = cut(source, tmp_path / f"o.{suffix}", 0.96, 3.0, mode)
    with base.open_input(source) as container:
        zero = float(base.origin(container))
    begin = zero + clip.start
    wanted = [
        (max(0, start - begin), min(end, zero + 3.0) - begin, text)
        for start, end, text in texts_of(source)
        if end > begin and start < zero + 3.0
    ]
    assert len(wanted) == 3
    found = texts_of(clip.path)
    assert [text for _, _, text in found] == [text for _, _, text in wanted]
    for (start, end, _), (from_, to, _) in zip(found, wanted, strict=True):
        assert (start, end) == pytest.approx((from_, to), abs=0.003)


def test_the_language_is_kept(tmp_path: Path) -> None:
    clip = cut(write_subtitled(tmp_path, "subrip"), tmp_path / "o.mp4", 0.5, 3)
    with av.open(str(clip.path)) as container:
        assert container.streams.subtitles[0].metadata["language"] == "deu"


def test_a_span_without_texts_still_has_its_track(tmp_path: Path) -> None:
    clip = cut(write_subtitled(tmp_path, "subrip"), tmp_path / "o.mkv", 2.0, 2.2)
    assert texts_of(clip.path) == []


def test_texts_at_one_time_are_all_kept(tmp_path: Path) -> None:
    texts = [(1.0, 2.0, "one"), (1.0, 2.0, "two"), (1.2, 1.4, "three")]
    clip = cut(write_subtitled(tmp_path, "subrip", texts), tmp_path / "o.mp4", 1.5, 3, "exact")
    assert [text for _, _, text in texts_of(clip.path)] == ["one", "two"]


def test_damaged_texts_cost_no_clip(tmp_path: Path) -> None:
    source = write_subtitled(tmp_path, "ass")
    words = b"0,0,Default,,0,0,0,,zwei"
    source.write_bytes(source.read_bytes().replace(words, b"\xff\xfe" + bytes(len(words) - 2)))
    clip = cut(source, tmp_path / "o.mp4", 1.0, 3.0)
    assert numbers(clip.path) == list(range(25, 75))


def test_a_natural_video_keeps_its_texts(tmp_path: Path) -> None:
    clip = cut(shared("webvtt.mkv"), tmp_path / "o.mp4", 0.2, 1.8, "smart")
    found = texts_of(clip.path)
    assert [text for _, _, text in found] == ["oop", "boop"]
    assert [start for start, _, _ in found] == pytest.approx([0.346, 1.346], abs=0.04)
