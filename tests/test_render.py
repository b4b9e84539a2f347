"""A source decoded once, and many files made of it: each right to the frame, and none in another's way."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media_files import heard, number_in, numbers, onset, shown, tone, write_video
from video import scope
from video.errors import ConfigError, InvalidMedia, ItemCancelled, OutputError, UnsupportedMedia
from video.media import codecs
from video.media.chain import Chain, _parse
from video.media.cut import cut
from video.media.encode import Encoding
from video.media.render import Output, Rendered, _threads_each, render

VFR_STEPS = [1, 1, 3, 1, 2, 5, 1, 1, 8, 2]
VFR_TIMES = [Fraction(ticks, 50) for ticks in itertools.accumulate(VFR_STEPS * 4, initial=0)]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 frames with B-frames, and sound at 1 s."""
    return write_video(tmp_path_factory.mktemp("in") / "a.mp4", b_frames=3, sound=tone(1, 0.5, 2))


@pytest.fixture
def one_thread() -> Iterator[None]:
    with scope.entered(scope.Slot(threads=1)):
        yield


def made(source: Path, *outputs: Output, **more: Any) -> list[Rendered]:
    """All outputs, none of which may fail; what is said of each is what is in it."""
    found = []
    for one in render(source, outputs, **more):
        if isinstance(one, Exception):
            raise one
        assert one.bytes == one.path.stat().st_size
        frames = shown(one.path)
        assert len(frames) == one.frames
        assert {frame.size for frame in frames} == {(one.width, one.height)}
        found.append(one)
    return found


def fine(codec: Any, format: str = "mp4") -> Encoding:
    return codecs.encoding(format, codec, "high", deep=True)[0]


# Right to the frame


@pytest.mark.usefixtures("one_thread")
def test_a_plain_output_is_the_exact_cut_to_the_byte(numbered: Path, tmp_path: Path) -> None:
    cut(numbered, tmp_path / "cut.mp4", 0.5, 1.5)
    made(numbered, Output(tmp_path / "out.mp4"), Output(tmp_path / "two.mp4"), start=0.5, end=1.5)
    for name in ("out.mp4", "two.mp4"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "cut.mp4").read_bytes()


@pytest.mark.parametrize(
    ("codec", "name"), [("h264", "o.mp4"), ("hevc", "o.mp4"), ("vp9", "o.webm"), ("av1", "o.mkv")]
)
def test_every_codec_keeps_every_frame_at_its_time(tmp_path: Path, codec: str, name: str) -> None:
    source = write_video(tmp_path / "a.mkv", frames=len(VFR_TIMES), times=VFR_TIMES)
    (one,) = made(source, Output(tmp_path / name, encoding=fine(codec, name[2:])))
    assert [frame.number for frame in shown(one.path)] == list(range(len(VFR_TIMES)))
    for frame, at in zip(shown(one.path), VFR_TIMES, strict=True):
        assert frame.seconds == pytest.approx(at, abs=0.0011)
    assert one.source_frames == one.frames


def test_outputs_of_one_run_are_what_each_would_be_alone(numbered: Path, tmp_path: Path) -> None:
    outputs = [("", None), ("scale=80:60", ""), ("hflip,vflip", "volume=0.5"), ("setpts=2*PTS", "atempo=0.5")]
    together = made(numbered, *(Output(tmp_path / f"t{at}.mkv", *one) for at, one in enumerate(outputs)))
    for at, one in enumerate(outputs):
        (alone,) = made(numbered, Output(tmp_path / f"a{at}.mkv", *one))
        assert (alone.frames, alone.seconds) == (together[at].frames, together[at].seconds)
        for left, right in zip(frames_of(alone.path), frames_of(together[at].path), strict=True):
            assert np.array_equal(left, right)


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]


def test_rotation_and_pixel_shape_are_baked_in_before_filters(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", size=(160, 120), rotation=90, shape=Fraction(3, 2), frames=10)
    # Upright it is 120 x 240: the lower half has the lower rows of blocks.
    whole, half = made(source, Output(tmp_path / "w.mp4"), Output(tmp_path / "h.mp4", "crop=iw:ih/2:0:ih/2"))
    assert (whole.width, whole.height) == (120, 240)
    assert numbers(whole.path) == list(range(10))
    assert (half.width, half.height) == (120, 120)
    with av.open(str(half.path)) as container:
        video = container.streams.video[0]
        assert next(container.decode(video)).rotation == 0
        assert video.sample_aspect_ratio in (1, None)


def test_colour_tags_are_copied_through_filters(tmp_path: Path) -> None:
    tags = "colorprim=bt709:transfer=bt709:colormatrix=bt709:keyint=12"
    source = write_video(tmp_path / "a.mp4", frames=5, options={"x264-params": tags})
    for one in made(source, Output(tmp_path / "o.mp4"), Output(tmp_path / "f.mp4", "scale=80:60,hue=h=9")):
        with av.open(str(one.path)) as container:
            context = container.streams.video[0].codec_context
            assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1)


def test_ten_bits_stay_where_asked_and_become_eight_elsewhere(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mkv", pixels="yuv420p10le", frames=10)
    deep, usual = made(source, Output(tmp_path / "d.mp4", encoding=fine("hevc")), Output(tmp_path / "u.mp4"))
    for one, pixels in ((deep, "yuv420p10le"), (usual, "yuv420p")):
        with av.open(str(one.path)) as container:
            assert container.streams.video[0].codec_context.pix_fmt == pixels
        assert numbers(one.path) == list(range(10))


# Filters


def test_filters_may_change_rate_and_drop_frames(numbered: Path, tmp_path: Path) -> None:
    fewer, fifth, late = made(
        numbered,
        Output(tmp_path / "f.mp4", "fps=12.5"),
        Output(tmp_path / "s.mp4", "select='not(mod(n,5))'"),
        Output(tmp_path / "l.mp4", "trim=start=1"),
    )
    assert fewer.frames == 25
    assert [frame.seconds for frame in shown(fewer.path)] == [Fraction(at, 25) * 2 for at in range(25)]
    assert numbers(fifth.path) == list(range(0, 50, 5))
    assert [frame.seconds for frame in shown(fifth.path)] == [Fraction(at, 5) for at in range(10)]
    assert (shown(late.path)[0].number, shown(late.path)[0].seconds) == (25, 1)


def test_filters_of_several_branches_are_linked_by_labels(numbered: Path, tmp_path: Path) -> None:
    graph = "split[a][b]; [a] negate [dark]; [b]scale=80:60[small];\n[dark][small]overlay=x=0:y=0"
    (one,) = made(numbered, Output(tmp_path / "o.mp4", graph))
    with av.open(str(numbered)) as source, av.open(str(one.path)) as result:
        pairs = zip(source.decode(video=0), result.decode(video=0), strict=True)
        before, after = next(itertools.islice(pairs, 5, None))
        big, mixed = (frame.to_ndarray(format="gray") for frame in (before, after))
    assert number_in(mixed[:60, :80]) == 5
    assert abs(mixed[60:, 80:].astype(int) + big[60:, 80:] - 255).mean() < 12


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("hue=h=20", "h=20"),
        ("hue='h=20,s=1'", "h=20,s=1"),
        (r"hue=h=20\,s=1", "h=20,s=1"),
        ("  hue  =  h=20  ", "h=20"),
        (r"geq='p(X\,Y)'", r"p(X\,Y)"),
        ("hue@mine=h=20", "h=20"),
        ("hue", None),
    ],
)
def test_texts_are_read_as_libavfilter_reads_them(text: str, arguments: str | None) -> None:
    ((node,),) = _parse(text)
    assert node.arguments == arguments


@pytest.mark.parametrize(
    "text",
    ["hue=h", "nosuch", "hue=nosuch=1", "hue,,hue", "hue;hue", "[a]hue", "hue[a]", "split[a],hue", "hue='h=1",
     "[a", "scale=0:0:w", "color=red", "nullsink", "hue=h=1]"],
)  # fmt: skip
def test_filters_that_are_wrong_are_refused_by_their_text(text: str) -> None:
    frame = av.VideoFrame(64, 64, "yuv420p")
    frame.time_base = Fraction(1, 25)
    with pytest.raises(ConfigError, match="cannot be used as filters"):
        Chain(text, frame, "yuv420p")


# Sound


def test_sound_keeps_its_place_to_the_sample_with_and_without_filters(numbered: Path, tmp_path: Path) -> None:
    plain, louder = made(numbered, Output(tmp_path / "p.mp4"), Output(tmp_path / "l.mp4", "", "volume=1.2"))
    assert onset(plain.path) == pytest.approx(onset(numbered), abs=1e-4)
    assert onset(louder.path) == pytest.approx(onset(numbered), abs=1e-4)
    assert np.abs(heard(louder.path)[1]).max() == pytest.approx(0.6, abs=0.03)


def test_a_change_of_tempo_ends_with_the_pictures(numbered: Path, tmp_path: Path) -> None:
    (one,) = made(numbered, Output(tmp_path / "o.mkv", "setpts=PTS/1.25", "atempo=1.25"))
    first, samples = heard(one.path)
    assert one.seconds == pytest.approx(1.6)
    assert float(first) + len(samples) / 48_000 == pytest.approx(1.6, abs=1024 / 48_000)
    assert onset(one.path) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("seconds", [1.0, 3.0])
@pytest.mark.parametrize("filters", ["", "volume=1"])
def test_sound_of_another_length_than_the_pictures(tmp_path: Path, seconds: float, filters: str) -> None:
    source = write_video(tmp_path / "a.mp4", sound=tone(0.5, 0.2, seconds))
    (one,) = made(source, Output(tmp_path / "o.mp4", "", filters))
    first, samples = heard(one.path)
    wanted = 1.0 if seconds == 1.0 and not filters else 2.0  # filters fill it up
    assert float(first) + len(samples) / 48_000 == pytest.approx(wanted, abs=0.03)
    assert onset(one.path) == pytest.approx(0.5, abs=0.002)
    assert numbers(one.path) == list(range(50))


def test_no_sound_where_none_is_wanted_or_there(numbered: Path, tmp_path: Path) -> None:
    silent = write_video(tmp_path / "s.mp4")
    (one,) = made(numbered, Output(tmp_path / "a.mp4", sound=None))
    (two,) = made(silent, Output(tmp_path / "b.mp4", sound="volume=2"))
    for path in (one.path, two.path):
        with av.open(str(path)) as container:
            assert not container.streams.audio


def test_sound_of_eight_channels_is_cut_to_the_sample(tmp_path: Path) -> None:
    """PyAV counts a plane too many in such frames."""
    mono = write_video(tmp_path / "m.mkv", sound=tone(1, 0.5, 2))
    source = tmp_path / "a.mkv"
    with av.open(str(mono)) as given, av.open(str(source), "w") as out:
        video = out.add_stream_from_template(given.streams.video[0], opaque=True)
        audio = out.add_stream("aac", rate=48_000, layout="7.1", bit_rate=256_000)
        wide = av.AudioResampler("fltp", "7.1", 48_000, 1024)
        for packet in given.demux():
            if packet.stream.type == "video" and packet.size:
                packet.stream = video
                out.mux(packet)
            elif packet.stream.type == "audio":
                out.mux([coded for frame in packet.decode() for one in wide.resample(frame)
                         for coded in audio.encode(one)])  # fmt: skip
        out.mux(audio.encode(None))
    plain, quiet = made(
        source, Output(tmp_path / "p.mp4"), Output(tmp_path / "q.mp4", "", "volume=0.9"), start=0.52, end=1.5
    )
    for one in (plain, quiet):
        narrow = av.AudioResampler("fltp", "mono", 48_000)
        with av.open(str(one.path)) as container:
            assert container.streams.audio[0].layout.nb_channels == 8
            frames = [
                piece.to_ndarray()[0]
                for frame in container.decode(audio=0)
                for piece in narrow.resample(frame)
            ]
        loud = np.argmax(np.abs(np.concatenate(frames)) > 0.03)
        assert loud / 48_000 == pytest.approx(0.48, abs=0.003)


# What goes wrong


BAD = {
    "an unknown filter": (Output("x.mp4", "nosuch"), ConfigError),
    "a wrong argument": (Output("x.mp4", "scale=w=nonsense("), ConfigError),
    "a wrong filter of sound": (Output("x.mp4", "", "nosuch"), ConfigError),
    "filters that leave nothing": (Output("x.mp4", "select=0"), ConfigError),
    "an unknown extension": (Output("x.avi"), ConfigError),
    "an encoder that is not there": (Output("x.mp4", encoding=Encoding("nosuch")), UnsupportedMedia),
    "hardware that is not there": (Output("x.mp4", encoding=Encoding("h264_nvenc", {})), ConfigError),
    "an option that is not there": (Output("x.mp4", encoding=Encoding(options={"crv": "1"})), ConfigError),
    "a setting that is refused": (Output("x.mp4", encoding=Encoding(options={"preset": "x"})), ConfigError),
    "a codec that does not fit": (Output("x.webm"), UnsupportedMedia),
    "a size that does not fit": (Output("x.mp4", "scale=81:61"), ConfigError),
    "a name that is taken": (Output("good.mp4"), ConfigError),
    "the source itself": (Output("in.mp4"), ConfigError),
    "a folder that cannot be made": (Output("in.mp4/x.mp4"), OutputError),
}


@pytest.mark.parametrize("what", BAD)
def test_an_output_that_fails_costs_only_itself(what: str, workplace: Path) -> None:
    output, kind = BAD[what]
    source = write_video(Path("in.mp4"), frames=20, sound=tone(0, 1, 1))
    before = source.read_bytes()
    good, bad, last = render(source, [Output("good.mp4"), output, Output("last.mkv", "hflip")])
    assert isinstance(good, Rendered), good
    assert isinstance(last, Rendered), last
    assert type(bad) is kind
    assert numbers(good.path) == list(range(20))
    assert {path.name for path in workplace.iterdir()} == {"in.mp4", "good.mp4", "last.mkv"}
    assert source.read_bytes() == before


def test_a_full_disk_costs_only_what_is_on_it(tmp_path: Path, tiny_disk: Path) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 10 * 48_000).astype(np.float32)
    source = write_video(tmp_path / "a.mp4", frames=250, sound=noise)
    full, good = render(source, [Output(tiny_disk / "o.mp4"), Output(tmp_path / "o.mp4")])
    assert isinstance(full, OutputError)
    assert "the disk is full" in str(full)
    assert isinstance(good, Rendered)
    assert good.frames == 250
    assert os.listdir(tiny_disk) == []


def test_when_all_outputs_have_failed_nothing_more_is_read(numbered: Path, tmp_path: Path) -> None:
    told: list[float] = []
    found = render(numbered, [Output(tmp_path / "o.mp4", "nosuch")], progress=told.append)
    assert [type(one) for one in found] == [ConfigError]
    assert told[-1:] != [1.0]


@pytest.mark.parametrize("which", ["start", "end"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_a_span_that_is_none_is_refused(which: str, value: float, numbered: Path, tmp_path: Path) -> None:
    span: Any = {which: value}
    with pytest.raises(ConfigError, match=f"{which}: must be a number of seconds"):
        render(numbered, [Output(tmp_path / "o.mp4")], progress=lambda _: None, **span)


def test_a_source_that_is_damaged_leaves_no_output(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(InvalidMedia):
        render(tmp_path / "a.mp4", [Output(tmp_path / "o.mp4")])
    with pytest.raises(ConfigError, match="beyond the end"):
        render(write_video(tmp_path / "b.mp4"), [Output(tmp_path / "o.mp4")], start=9)
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}


def test_a_picture_that_damage_puts_hours_ahead_is_left_out(tmp_path: Path) -> None:
    """Else filters and players would fill the hours up, and all pictures after it would be lost."""
    whole = write_video(tmp_path / "a.ts", b_frames=0, sound=tone(1, 0.5, 2))
    with av.open(str(whole)) as given, av.open(str(tmp_path / "b.ts"), "w") as out:
        copies = {one.index: out.add_stream_from_template(one, opaque=True) for one in given.streams}
        first = given.streams.video[0].start_time
        for packet in given.demux():
            if packet.stream.type == "video" and packet.pts == first + 30 * 3600:
                packet.pts += 11_400 * 90_000
            packet.stream = copies[packet.stream_index]
            out.mux(packet)
    plain, steady = made(tmp_path / "b.ts", Output(tmp_path / "o.mp4"), Output(tmp_path / "s.mp4", "fps=10"))
    assert numbers(plain.path) == [number for number in range(50) if number != 30]
    assert (plain.seconds, steady.frames) == (2, 20)


def test_a_cancelled_run_leaves_no_output_and_what_was_there_stays(numbered: Path, tmp_path: Path) -> None:
    (tmp_path / "o.mp4").write_text("of yesterday")
    slot = scope.Slot()

    def tell(share: float) -> None:
        if share > 0.3:
            slot.cancelled.set()

    with scope.entered(slot), pytest.raises(ItemCancelled):
        render(numbered, [Output(tmp_path / "o.mp4"), Output(tmp_path / "p.mp4")], progress=tell)
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]
    assert (tmp_path / "o.mp4").read_text() == "of yesterday"


def test_a_file_that_lost_frames_is_not_delivered(
    numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from video.media import encode

    finish = encode.PictureWriter.finish

    def miscount(self: encode.PictureWriter, end: int) -> None:
        finish(self, end)
        self.frames += 1

    monkeypatch.setattr(encode.PictureWriter, "finish", miscount)
    (one,) = render(numbered, [Output(tmp_path / "o.mp4")])
    assert isinstance(one, OutputError)
    assert "50 frames came out where 51 were written" in str(one)
    assert os.listdir(tmp_path) == []


# How it goes


def test_progress_rises_to_1_and_not_beyond(numbered: Path, tmp_path: Path) -> None:
    told: list[float] = []
    made(numbered, Output(tmp_path / "o.mp4"), start=0.5, end=1.5, progress=told.append)
    assert told == sorted(told)
    assert 0 <= told[0] < 0.1
    assert told[-1] == 1
    assert len({round(share, 3) for share in told}) > 20


def test_encoders_share_the_threads_of_their_slot(numbered: Path, tmp_path: Path) -> None:
    for threads, outputs, each in ((1, 3, 1), (8, 1, 8), (8, 4, 2), (2, 4, 2)):
        with scope.entered(scope.Slot(threads=threads)):
            for one in made(numbered, *(Output(tmp_path / f"{at}.mp4") for at in range(outputs)), end=0.2):
                assert f" threads={each} ".encode() in one.path.read_bytes()


def test_an_encoder_that_works_while_others_do_has_its_share_and_no_more() -> None:
    for threads, outputs, wanted in ((1, 4, (1, 1)), (2, 1, (2, 2)), (2, 4, (2, 1)), (8, 2, (4, 4))):
        with scope.entered(scope.Slot(threads=threads)):
            found = [_threads_each(outputs, encoder) for encoder in ("libx264", "libsvtav1")]
        assert tuple(found) == wanted
