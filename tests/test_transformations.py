"""Transformations as data: each works, and lists of them become one chain by laws."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.media_files import tone
from video.errors import ConfigError, UnknownName
from video.media import catalogue, fuse, strategies
from video.media.chain import Chain
from video.media.encode import CLIP, Encoding
from video.media.render import Output, Rendered, render
from video.media.sample import write_sample
from video.media.transform import LAYERS, Chosen, Facts, Range, Transformation, timing

FACTS = Facts(248, 136, Fraction(25), 10.0, 48_000, "clip.mp4")
"""A width that is no multiple of 16."""
PICTURES = {name: one for name, one in catalogue.available().items() if one.picture}
SOUNDS = {name: one for name, one in catalogue.available().items() if one.sound}
SHRINK = ("time", "crop", "rate", "downscale")


def ends(one: Transformation) -> list[Chosen]:
    """With all parameters at their lowest, and at their highest."""
    return [
        Chosen(one, tuple((name, getattr(span, end)) for name, span in one.ranges)) for end in ("low", "high")
    ]


def pictures(count: int = 40) -> Iterator[VideoFrame]:
    """Bright pictures, each a little different, up to the end of `FACTS.seconds`."""
    dice = np.random.default_rng(1)
    for number in range(count):
        pixels = dice.integers(120, 200, (FACTS.height, FACTS.width, 3), np.uint8)
        frame = VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        yield frame


def run(text: str, wanted: str = "yuv420p") -> list[VideoFrame]:
    frames = list(pictures())
    chain = Chain(text, frames[0], wanted)
    return [out for frame in (*frames, None) for out in chain.push(frame)]


def drawn(seed: int) -> list[Chosen]:
    """Any number of any transformations, one of each family at most."""
    dice = random.Random(seed)
    families: dict[str, Transformation] = {}
    for one in dice.sample(list(catalogue.available().values()), dice.randint(0, 40)):
        families.setdefault(one.family or one.name, one)
    return [one.draw(dice, FACTS) for one in families.values()]


def heard_of(chosen: Chosen, sound: np.ndarray) -> np.ndarray:
    """What one makes of a sound."""
    end = timing((chosen,)).seconds(FACTS.seconds)
    return through(chosen.text(chosen.of.sound, FACTS, end), sound)


def through(text: str, sound: np.ndarray) -> np.ndarray:
    """(samples,) float32 at 48 kHz that come out of filters when such come in."""
    frames = []
    for at in range(0, len(sound), 4800):
        frame = AudioFrame.from_ndarray(np.tile(sound[at : at + 4800], (2, 1)), "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, at, Fraction(1, 48_000)
        frames.append(frame)
    chain = Chain(text, frames[0], "sample_fmts=fltp:sample_rates=48000")
    return np.concatenate([out.to_ndarray()[0] for one in (*frames, None) for out in chain.push(one)])


def beep(start: float) -> np.ndarray:
    """Half a second of a tone in three of silence."""
    return tone(start, 0.5, 3.0)


def begins(sound: np.ndarray) -> float:
    """Seconds before it is heard."""
    return float(np.argmax(np.abs(sound) > 0.1 * np.abs(sound).max())) / FACTS.sample_rate


# The catalogue


def test_there_are_enough_of_each_layer() -> None:
    assert len(catalogue.TRANSFORMATIONS) >= 40
    for layer in LAYERS:
        assert sum(one.layer == layer for one in catalogue.TRANSFORMATIONS.values()) >= 4, layer


def test_all_of_them_work_in_this_build() -> None:
    assert list(catalogue.available()) == list(catalogue.TRANSFORMATIONS)


@pytest.mark.parametrize("name", PICTURES)
def test_each_gives_pictures_of_a_sane_size_that_are_full_of_picture(name: str) -> None:
    for chosen in ends(PICTURES[name]):
        text = chosen.text(chosen.of.picture, FACTS, FACTS.seconds)
        found = run(f"{fuse.RGB},{text},{fuse.YUV}" if chosen.of.space == "rgb" else text)
        assert len(found) >= 20, text
        for frame in found[len(found) // 2 :]:
            assert frame.width % 2 == frame.height % 2 == 0, text
            assert 0.7 * FACTS.width <= frame.width <= FACTS.width
            assert 0.7 * FACTS.height <= frame.height <= FACTS.height
            light = frame.to_ndarray(format="gray")
            for edge in (light[0], light[-1], light[:, 0], light[:, -1]):
                assert edge.mean() > 75, f"{text}: an edge is black"


@pytest.mark.parametrize("name", SOUNDS)
def test_each_gives_sound_of_its_length(name: str) -> None:
    hum = (0.2 * np.sin(np.arange(480_000) / 20)).astype(np.float32)
    for chosen in ends(SOUNDS[name]):
        end = timing((chosen,)).seconds(FACTS.seconds)
        heard = heard_of(chosen, hum)
        assert len(heard) / 48_000 == pytest.approx(end, abs=0.05)
        assert np.isfinite(heard).all()
        assert 0.01 < np.abs(heard).max() < 1.0


# Not those that change times on purpose, nor those that cut sound into windows and move each by a part of it.
PROMPT = sorted(SOUNDS.keys() - {"trim_start", "trim_end", "hold_first", "speed", "pitch"})


@pytest.mark.parametrize("name", PROMPT)
def test_sound_keeps_its_place(name: str) -> None:
    start = 0.5
    for chosen in ends(SOUNDS[name]):
        assert begins(heard_of(chosen, beep(start))) == pytest.approx(start, abs=0.002)


@pytest.mark.parametrize("start", [0.7, 1.37, 2.0])
def test_speed_and_pitch_together_move_sound_no_more_than_one_of_them(start: float) -> None:
    speed = catalogue.get("speed").at(speed=0.98)
    pitch = catalogue.usable(dataclasses.replace(catalogue.TRANSFORMATIONS["pitch"], sound="nosuch"))
    assert pitch is not None
    plan = fuse.fuse([speed, pitch.at(pitch=1.03), catalogue.get("hold_first").at(lead=0.2)], FACTS)
    assert begins(through(plan.sound, beep(start))) == pytest.approx(start / 0.98 + 0.2, abs=0.005)
    assert {one.name for one in plan.chosen} == {"speed", "pitch", "hold_first"}


# The least effect

SEEN = 0.1
"""Levels of 256, over all planes and pictures."""
HEARD = 0.005
"""Of the loudness of the sound."""
SOURCE = Facts(160, 90, Fraction(25), 3.0, 48_000, "coast.mp4")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of moving, noisy pictures in colour, and a tune with hiss in both ears."""
    folder = tmp_path_factory.mktemp("source")
    plain = write_sample(folder, seconds=SOURCE.seconds, size=(SOURCE.width, SOURCE.height))
    noise = "noise=alls=6:allf=t:all_seed=1,format=yuv420p"
    hiss = "aeval='val(0)+0.02*random(0)|val(0)+0.02*random(1)':c=stereo"
    best = Encoding(options={"preset": "veryfast", "crf": "8"}, audio_bit_rate=160_000)
    (made,) = render(plain, [Output(folder / "noisy.mkv", noise, hiss, best)])
    assert isinstance(made, Rendered), made
    return made.path


Decoded = tuple[list[tuple[Fraction, np.ndarray]], np.ndarray]


def decoded(path: Path) -> Decoded:
    """Pictures with their times, and (samples,) sound."""
    with av.open(str(path)) as container:
        pictures = [
            (frame.pts * frame.time_base, frame.to_ndarray(format="yuv420p").astype(np.int16))
            for frame in container.decode(video=0)
        ]
        container.seek(0)
        return pictures, np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


@pytest.fixture(scope="module")
def before(source: Path) -> Decoded:
    return decoded(source)


def changed(chosen: Chosen, before: Decoded) -> bool:
    """Whether a transformation can be seen in the pictures, or heard in the sound, of a source."""
    end = timing((chosen,)).seconds(SOURCE.seconds)
    if text := chosen.text(chosen.of.picture, SOURCE, end):
        frames = [VideoFrame.from_ndarray(planes.astype(np.uint8), "yuv420p") for _, planes in before[0]]
        for frame, (time, _) in zip(frames, before[0], strict=True):
            frame.pts, frame.time_base = round(time * 90_000), Fraction(1, 90_000)
        rgb = chosen.of.space == "rgb"
        was, found = (
            [
                (out.pts, out.to_ndarray().astype(np.int16))
                for one in (*frames, None)
                for out in chain.push(one)
            ]
            for chain in (
                Chain(f"{fuse.RGB},{words},{fuse.YUV}" if rgb else words, frames[0], "yuv420p")
                for words in ("null", text)
            )
        )
        if [(time, planes.shape) for time, planes in was] != [(time, planes.shape) for time, planes in found]:
            return True
        pairs = zip(was, found, strict=True)
        if np.mean([np.abs(one[1] - other[1]).mean() for one, other in pairs]) >= SEEN:
            return True
    if text := chosen.text(chosen.of.sound, SOURCE, end):
        was, found = before[1], through(text, before[1])
        if abs(len(was) - len(found)) > 480:
            return True
        most = min(len(was), len(found))
        return bool(np.std(found[:most] - was[:most]) >= HEARD * np.std(was))
    return False


def encoded(encoding: Encoding, source: Path, folder: Path) -> Decoded:
    (made,) = render(source, [Output(folder / "made.mp4", encoding=encoding)])
    assert isinstance(made, Rendered), made
    return decoded(made.path)


@pytest.mark.parametrize("name", [name for name, one in catalogue.available().items() if not one.encoding])
def test_whatever_is_drawn_can_be_seen_or_heard(name: str, before: Decoded) -> None:
    one = catalogue.get(name)
    nearest = [
        min((end for part in span.parts for end in part), key=lambda end: abs(end - (span.neutral or 0.0)))
        for _, span in one.ranges
    ]
    weakest = Chosen(one, tuple((name, end) for (name, _), end in zip(one.ranges, nearest, strict=True)))
    drawn = [one.draw(random.Random(seed), SOURCE) for seed in range(3)]
    assert [str(each) for each in (weakest, *drawn) if not changed(each, before)] == []


@pytest.mark.parametrize("name", [name for name, one in catalogue.available().items() if one.encoding])
def test_whatever_is_drawn_for_the_container_changes_what_is_decoded(
    name: str, source: Path, tmp_path: Path
) -> None:
    plain, one = encoded(CLIP, source, tmp_path), catalogue.get(name)
    for drawn in {one.draw(random.Random(seed), SOURCE) for seed in range(8)}:
        made = encoded(fuse.fuse([drawn], SOURCE).encoding, source, tmp_path)
        pictures = any((a != b).any() for (_, a), (_, b) in zip(made[0], plain[0], strict=True))
        assert pictures or not np.array_equal(made[1], plain[1]), str(drawn)


@pytest.mark.parametrize("name", [name for name, one in PICTURES.items() if one.place != "time"])
def test_what_is_softened_is_still_seen_or_left_out(name: str, before: Decoded) -> None:
    drawn = catalogue.get(name).draw(random.Random(1), SOURCE)
    for share in (strategies.SOFTER, strategies.SOFTER**2):
        less = drawn.softened(share)
        assert less is None or changed(less, before), str(less)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(list(strategies.COUNTS)))
def test_every_parameter_of_a_variant_keeps_its_least_effect(seed: int, strategy: str) -> None:
    for one in strategies.choose(strategy, SOURCE, seed, 1):
        for (name, value), (_, span) in zip(one.values, one.of.ranges, strict=True):
            assert span.low <= value <= span.high or span.length_share is not None, f"{one} {name}"
            assert span.changes(value), f"{one} {name}"


def test_a_range_that_leaves_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ConfigError, match="wider"):
        Range(-0.1, 0.1, 0.0, least=0.2)


def test_a_filter_that_this_build_lacks_gives_way_to_the_fallback() -> None:
    lacking = dataclasses.replace(
        catalogue.get("hue"), picture="nosuchfilter={degrees}", fallback="hue=h={degrees}"
    )
    instead = catalogue.usable(lacking)
    assert instead is not None
    assert instead.picture == "hue=h={degrees}"


def test_one_without_a_fallback_is_not_offered() -> None:
    assert (
        catalogue.usable(dataclasses.replace(catalogue.get("hue"), picture="nosuchfilter={degrees}")) is None
    )


def test_an_option_that_fails_only_on_a_frame_counts_as_lacking() -> None:
    assert not catalogue.builds(Transformation("bad", "audio", sound="bass=-2.7"))


def test_the_fallback_for_brightness_brightens() -> None:
    text = catalogue.get("brightness").at(light=0.04)
    brighter = run(text.text(text.of.picture, FACTS, 10.0))[0].to_ndarray(format="gray").mean()
    before = next(pictures()).to_ndarray(format="gray").mean()
    assert brighter - before == pytest.approx(10, abs=2)


def test_nothing_can_be_changed() -> None:
    one = catalogue.get("crop")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.cost = 0.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        catalogue.TRANSFORMATIONS["crop"] = one  # type: ignore[index]


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean vignette"):
        catalogue.get("vignete")


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranges": ()},
        {"picture": "hue=h={nosuch}"},
        {"picture": "", "ranges": ()},
    ],
)
def test_a_transformation_that_cannot_work_is_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(catalogue.get("hue"), **wrong)


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="share is 2"):
        catalogue.get("downscale").at(share=2.0)
    with pytest.raises(ConfigError, match="share, x, y"):
        catalogue.get("crop").at(share=0.96)


def test_softer_is_halfway_to_nothing() -> None:
    half = catalogue.get("contrast").at(gain=1.08).softened(0.5)
    assert half is not None
    assert half.values == (("gain", 1.04),)
    assert catalogue.get("mirror").at().softened(0.5) is None


def test_braces_take_arithmetic_and_nothing_else() -> None:
    one = Transformation("sum", "colour", (("a", Range(0, 9)),), picture="hue=h={-a+2*(a-1)/4}")
    assert one.at(a=5).text(one.picture, FACTS, 10.0) == "hue=h=-3"
    bad = Transformation("call", "colour", (("a", Range(0, 9)),), picture="hue=h={a**2}")
    with pytest.raises(ConfigError, match=r"a \*\* 2"):
        bad.at(a=5).text(bad.picture, FACTS, 10.0)


# One chain


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_the_chain_has_all_that_the_list_has_and_nothing_else(seed: int) -> None:
    chosen = drawn(seed)
    plan = fuse.fuse(chosen, FACTS)
    assert sorted(map(str, plan.chosen)) == sorted(map(str, chosen))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_crops_and_downscales_come_before_all_that_costs(seed: int) -> None:
    places = [one.of.place in SHRINK for one in fuse.fuse(drawn(seed), FACTS).chosen if one.of.picture]
    assert places == sorted(places, reverse=True)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_pixels_go_into_rgb_once_at_most_and_only_where_they_must(seed: int) -> None:
    chosen = drawn(seed)
    plan = fuse.fuse(chosen, FACTS)
    needed = 2 if any(one.of.space == "rgb" for one in chosen) else 0
    assert plan.conversions == plan.picture.count("format=") == needed
    if needed:
        inside = plan.picture.split(fuse.RGB)[1].split(fuse.YUV)[0]
        outside = plan.picture.replace(inside, "")
        for one in chosen:
            if one.of.picture and one.of.space != "any":
                text = one.text(one.of.picture, FACTS, plan.seconds)
                assert text in (inside if one.of.space == "rgb" else outside)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_the_order_of_the_list_is_no_part_of_its_meaning(seed: int, dice: random.Random) -> None:
    chosen = drawn(seed)
    plan = fuse.fuse(chosen, FACTS)
    dice.shuffle(chosen)
    assert fuse.fuse(chosen, FACTS) == plan


@pytest.mark.parametrize("seed", range(12))
def test_any_chain_runs(seed: int) -> None:
    plan = fuse.fuse(drawn(seed), FACTS)
    assert len(run(plan.picture or "null")) >= 20


def test_two_of_a_family_are_refused() -> None:
    crops = [catalogue.get("crop_wide").at(share=0.9), catalogue.get("crop").at(share=0.96, x=0, y=0)]
    with pytest.raises(ConfigError, match="family crop"):
        fuse.fuse(crops, FACTS)


def test_what_leaves_nothing_of_a_video_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is left"):
        fuse.fuse([catalogue.get("trim_end").at(cut=0.5)], FACTS._replace(seconds=0.4))


def test_a_crop_makes_what_follows_cheaper() -> None:
    vignette, small = catalogue.get("vignette").at(angle=0.3), catalogue.get("downscale").at(share=0.8)
    whole, less = fuse.fuse([vignette], FACTS), fuse.fuse([vignette, small], FACTS)
    assert less.stages[-1].cost == pytest.approx(0.64 * whole.stages[-1].cost)


def test_settings_of_the_container_reach_the_encoder() -> None:
    row = [catalogue.get("key_frames").at(seconds=2.5), catalogue.get("picture_quality").at(crf=22)]
    encoding = fuse.fuse(row, FACTS).encoding
    assert encoding.key_seconds == Fraction(5, 2)
    assert encoding.options["crf"] == "22"


def test_a_plan_can_be_printed() -> None:
    row = [catalogue.get("curve").at(bend=0.02), catalogue.get("crop_wide").at(share=0.9)]
    lines = str(fuse.fuse(row, FACTS)).splitlines()
    assert "clip.mp4" in lines[0]
    assert "2 conversions" in lines[0]
    assert [line.split()[0] for line in lines[1:3]] == ["crop", "work"]
    assert any(line.strip().startswith("picture: crop=") for line in lines)


# Strategies


@pytest.mark.parametrize("strategy", strategies.COUNTS)
def test_each_strategy_keeps_its_counts_and_its_budget(strategy: str) -> None:
    for seed in range(100):
        chosen = strategies.choose(strategy, FACTS, seed, 1)
        least, most = strategies.COUNTS[strategy]  # type: ignore[index]
        assert least <= len(chosen) <= most
        assert sum(one.of.cost for one in chosen) <= strategies.BUDGET
        fuse.fuse(chosen, FACTS)


def test_seven_layers_are_seven() -> None:
    for seed in range(100):
        assert {one.of.layer for one in strategies.choose("seven_layer", FACTS, seed, 1)} == set(LAYERS)


def test_a_silent_video_has_no_audio_layer() -> None:
    for seed in range(50):
        for strategy, (least, _) in strategies.COUNTS.items():
            chosen = strategies.choose(strategy, FACTS._replace(sample_rate=0), seed, 1)
            assert len(chosen) >= least
            assert not any(one.of.layer == "audio" for one in chosen)
            assert fuse.fuse(chosen, FACTS._replace(sample_rate=0)).sound == ""


def test_a_seed_says_all_and_each_variant_is_another() -> None:
    first = [strategies.choose("standard", FACTS, 7, number) for number in range(1, 9)]
    assert first == [strategies.choose("standard", FACTS, 7, number) for number in range(1, 9)]
    assert len(set(first)) == 8
    assert strategies.choose("standard", FACTS, 8, 1) != first[0]


def test_a_short_video_keeps_most_of_its_length() -> None:
    short = FACTS._replace(seconds=0.8)
    for seed in range(100):
        assert fuse.fuse(strategies.choose("standard", short, seed, 1), short).seconds > 0.6


def test_what_harms_is_softened_and_what_still_harms_is_left_out() -> None:
    contrast, mirror = catalogue.get("contrast").at(gain=1.08), catalogue.get("mirror").at()
    bass = catalogue.get("bass").at(decibels=2.0)

    def likeness(row: tuple[Chosen, ...]) -> float:
        return 1.0 - sum(
            abs(one.values[0][1] - 1) if one.name == "contrast" else 0.5 for one in row if one.of.picture
        )

    kept = strategies.keep_near([contrast, mirror, bass], 0.97, likeness)
    assert kept == (catalogue.get("contrast").at(gain=1.02), bass)


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ConfigError, match="seven_layer"):
        strategies.choose("best", FACTS, 0, 1)
