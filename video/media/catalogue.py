"""The transformations that there are, in the order in which they stand in a chain.

Ranges are mild, since a variant has up to 24 of them at once and is still to be watched. What has a cheap
twin in YUV is not offered in RGB: the way there and back takes 2.6 ms a 720p frame by itself. Each keeps a
least effect, which outlives the encoder: `lutyuv` is told to round, since it would cut off.
`cost` was measured by benchmarks/measure_transformations.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType

from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

from video.errors import ConfigError, UnknownName, UnsupportedMedia
from video.media.chain import AnyFrame, Chain
from video.media.transform import Chosen, Facts, Range, Transformation

_ANYWHERE = Range(0.0, 1.0)
TRIED = Facts(320, 180, Fraction(25), 10.0, 48_000)
"""What texts are tried on."""

_ALL = (
    # Time: first, since pictures that go need no more work; and their sound goes with them.
    Transformation(
        "trim_end", "time", (("cut", Range(0.1, 0.6, 0.0, length_share=0.04)),), place="time",
        picture="trim=end={seconds-cut-0.002}", sound="atrim=end={seconds-cut}",
    ),
    Transformation(
        "trim_start", "time", (("start", Range(0.1, 0.6, 0.0, length_share=0.04)),), place="time",
        picture="trim=start={start-0.002},setpts=round(PTS-{start}/TB)",
        sound="atrim=start={start},asetpts=PTS-STARTPTS",
    ),
    Transformation(
        "speed", "time", (("speed", Range(0.95, 1.06, 1.0, least=0.01)),), place="time",
        picture="setpts=round(PTS/{speed})", sound="adelay={tempo_lag}:all=1,atempo={speed}",
    ),
    Transformation(
        "hold_first", "time", (("lead", Range(0.1, 0.4, 0.0, length_share=0.04)),), place="time",
        picture="setpts='PTS+gt(N,0)*round({lead}/TB)'", sound="adelay={1000*lead}:all=1",
    ),
    # Geometry that leaves fewer pixels, and rates that leave fewer pictures.
    Transformation(
        "crop", "geometry", (("share", Range(0.95, 0.985, 1.0)), ("x", _ANYWHERE), ("y", _ANYWHERE)),
        geometry=True, place="crop", keeps=("share", "share"), family="crop", cost=0,
        picture="crop=2*floor(iw*{share}/2):2*floor(ih*{share}/2):(iw-ow)*{x}:(ih-oh)*{y}",
    ),
    Transformation(
        "crop_drift", "geometry", (("share", Range(0.95, 0.98, 1.0)), ("pace", Range(0.2, 0.6))),
        geometry=True, place="crop", keeps=("share", "share"), family="crop", cost=0,
        picture="crop=2*floor(iw*{share}/2):2*floor(ih*{share}/2):(iw-ow)*(0.5+0.5*sin(t*{pace})):(ih-oh)/2",
    ),
    Transformation(
        "crop_wide", "geometry", (("share", Range(0.88, 0.96, 1.0)),),
        geometry=True, place="crop", keeps=("share",), family="crop", cost=0,
        picture="crop=iw:2*floor(ih*{share}/2)",
    ),
    Transformation(
        "frame_rate", "frame", (("share", Range(0.8, 0.96, 1.0)),),
        place="rate", keeps=("share",), family="rate", cost=0.02, picture="fps={rate*share}",
    ),
    Transformation(
        "skip_frames", "frame", (("each", Range(12, 40, digits=0)),),
        place="rate", family="rate", cost=0, picture="select='mod(n,{each})-1'",
    ),
    Transformation(
        "downscale", "geometry", (("share", Range(0.75, 0.94, 1.0)),),
        geometry=True, place="downscale", keeps=("share", "share"), family="scale", cost=1.1,
        picture="scale=2*floor(iw*{share}/2):2*floor(ih*{share}/2),setsar=1",
    ),
    Transformation(
        "squeeze", "geometry", (("share", Range(0.96, 0.99, 1.0)),),
        geometry=True, place="downscale", keeps=("share",), family="scale", cost=0.71,
        picture="scale=2*floor(iw*{share}/2):ih,setsar=1",
    ),
    Transformation(
        "flatten", "geometry", (("share", Range(0.96, 0.99, 1.0)),),
        geometry=True, place="downscale", keeps=("share",), family="scale", cost=0.87,
        picture="scale=iw:2*floor(ih*{share}/2),setsar=1",
    ),
    # Geometry that costs. What turns is cropped to what is full of picture.
    Transformation("mirror", "geometry", geometry=True, space="yuv", cost=0.23, picture="hflip"),
    Transformation(
        "tilt", "geometry", (("degrees", Range(-1.2, 1.2, 0.0, digits=2, least=0.3)),),
        geometry=True, space="yuv", cost=13,
        picture="rotate={degrees}*PI/180,crop="
        "2*floor(iw/(1+(iw/ih+ih/iw)*sin(abs({degrees})*PI/180))/2):"
        "2*floor(ih/(1+(iw/ih+ih/iw)*sin(abs({degrees})*PI/180))/2)",
    ),
    Transformation(
        "lens", "geometry", (("bend", Range(-0.06, -0.01, 0.0, least=0.005)),),
        geometry=True, space="yuv", cost=9.1, picture="lenscorrection=k1={bend}:i=bilinear",
    ),
    # Colour, in YUV.
    Transformation(
        "brightness", "colour", (("light", Range(-0.03, 0.04, 0.0, least=0.01)),), space="yuv", cost=0.52,
        picture="eq=brightness={light}", fallback="lutyuv=y=round(val+{219*light})",
    ),
    Transformation(
        "contrast", "colour", (("gain", Range(0.93, 1.08, 1.0, least=0.02)),), space="yuv", cost=0.52,
        picture="eq=contrast={gain}", fallback="lutyuv=y=round((val-126)*{gain}+126)",
    ),
    Transformation(
        "gamma", "colour", (("gamma", Range(0.92, 1.1, 1.0, least=0.02)),), space="yuv", cost=0.51,
        picture="eq=gamma={gamma}", fallback="lutyuv=y=round(gammaval({1/gamma}))",
    ),
    Transformation(
        "saturation", "colour", (("gain", Range(0.85, 1.18, 1.0, least=0.05)),), space="yuv", cost=0.29,
        picture="eq=saturation={gain}", fallback="hue=s={gain}",
    ),
    Transformation(
        "hue", "colour", (("degrees", Range(-6.0, 6.0, 0.0, digits=1, least=2.0)),), space="yuv", cost=0.29,
        picture="hue=h={degrees}",
    ),
    Transformation(
        "warmth", "colour", (("warmth", Range(-4.0, 5.0, 0.0, digits=1, least=1.0)),), space="yuv", cost=0.49,
        picture="lutyuv=u=round(val-{warmth}):v=round(val+{0.8*warmth})",
    ),
    Transformation(
        "tint", "colour", (("magenta", Range(-2.5, 2.5, 0.0, digits=1, least=1.0)),), space="yuv", cost=0.49,
        picture="lutyuv=u=round(val+{magenta}):v=round(val+{magenta})",
    ),
    Transformation(
        "faded_black", "colour", (("lift", Range(2.0, 10.0, 0.0, digits=1, least=1.0)),), space="yuv",
        cost=0.53,
        picture="lutyuv=y=round(val+{lift}*(1-val/235))",
    ),
    Transformation(
        "soft_white", "colour", (("drop", Range(2.0, 12.0, 0.0, digits=1, least=1.0)),), space="yuv",
        cost=0.51,
        picture="lutyuv=y=round(val-{drop}*(val-16)/219)",
    ),
    Transformation(
        "cast", "colour",
        (("shadows", Range(-0.02, 0.02, 0.0, least=0.006)), ("lights", Range(-0.02, 0.02, 0.0, least=0.006))),
        space="yuv", cost=0.45,
        picture="colorcorrect=rl={shadows}:bl={-shadows}:rh={lights}:bh={-lights}",
    ),
    # Texture, in YUV: what smooths before what adds detail, grain last.
    Transformation(
        "denoise", "texture", (("strength", Range(1.5, 3.0, 0.0, digits=1, least=1.0)),), space="yuv", cost=2,
        family="smooth", picture="hqdn3d={strength}",
        fallback="atadenoise=0a={strength/100}:0b={strength/50}:s=5",
    ),
    Transformation(
        "soften", "texture", (("radius", Range(0.3, 0.6, 0.0, digits=2, least=0.25)),), space="yuv", cost=1.4,
        family="edges", picture="gblur={radius}:steps=1:planes=1",
    ),
    Transformation(
        "chroma_blur", "texture", (("radius", Range(1.0, 3.0, digits=0)),), space="yuv", cost=0.89,
        family="chroma", picture="boxblur=lr=0:cr={radius}", fallback="avgblur={radius}:planes=6",
    ),
    Transformation(
        "sharpen", "texture", (("amount", Range(0.2, 0.6, 0.0, digits=2, least=0.1)),), space="yuv", cost=3.1,
        family="edges", picture="unsharp=3:3:{amount}:3:3:0",
    ),
    Transformation(
        "deband", "texture", (("strength", Range(1.6, 2.6, digits=2)),), space="yuv", cost=0.72,
        family="smooth", picture="gradfun={strength}:8",
    ),
    Transformation(
        "colour_fringe", "texture", (("pixels", Range(1, 2, 0.0, digits=0)),), space="yuv", cost=0.35,
        family="chroma", picture="chromashift=cbh={pixels}:crh={-pixels}",
    ),
    Transformation(
        "vignette", "texture", (("angle", Range(0.22, 0.36, 0.0, least=0.1)),), space="yuv", cost=4.5,
        picture="vignette={angle}",
    ),
    Transformation(
        "grain", "texture",
        (("strength", Range(2, 4, 0.0, digits=0, least=2)), ("seed", Range(1, 9999, digits=0))), space="yuv",
        cost=0.14, picture="noise=c0s={strength}:c0f=t:all_seed={seed}",
    ),
    Transformation(
        "colour_grain", "texture",
        (("strength", Range(2, 5, 0.0, digits=0, least=2)), ("seed", Range(1, 9999, digits=0))),
        space="yuv", cost=0.16, picture="noise=c1s={strength}:c2s={strength}:c1f=t:c2f=t:all_seed={seed}",
    ),
    # Pictures together with their neighbours.
    Transformation(
        "blend_frames", "frame", (("share", Range(0.1, 0.3, 0.0, least=0.05)),), space="yuv", cost=2.4,
        family="blend", picture="tmix=2:{share}|{1-share}",
    ),
    Transformation(
        "afterglow", "frame", (("decay", Range(0.4, 0.6, 0.0, least=0.3)),), space="yuv", cost=1.8,
        family="blend", picture="lagfun={decay}:planes=1",
    ),
    Transformation(
        "deflicker", "frame", (("frames", Range(3, 7, digits=0)),), space="yuv", cost=0.87,
        picture="deflicker={frames}",
    ),
    # Colour that only RGB has.
    Transformation(
        "vibrance", "colour", (("amount", Range(-0.2, 0.25, 0.0, digits=2, least=0.06)),), space="rgb",
        cost=5.9,
        picture="vibrance={amount}",
    ),
    Transformation(
        "curve", "colour", (("bend", Range(-0.04, 0.05, 0.0, least=0.01)),), space="rgb", cost=1.2,
        picture="curves=master='0/0 0.5/{0.5+bend} 1/1'",
    ),
    Transformation(
        "split_tone", "colour", (("amount", Range(-0.03, 0.03, 0.0, least=0.01)),), space="rgb", cost=1.2,
        picture="curves=r='0/0 0.75/{0.75+amount} 1/1':b='0/0 0.25/{0.25+amount} 1/1'",
    ),
    Transformation(
        "channel_mix", "colour", (("bleed", Range(0.02, 0.06, 0.0, least=0.01)),), space="rgb", cost=2.5,
        picture="colorchannelmixer=rr={1-bleed}:rg={bleed}:gg={1-bleed}:gb={bleed}:bb={1-bleed}:br={bleed}",
    ),
    # Of the whole result: when it begins and ends to be seen.
    # A first picture that is all black would be what players show of the file.
    Transformation(
        "fade_in", "time", (("fade", Range(0.2, 0.7, 0.0, digits=2, length_share=0.06)),), space="yuv",
        place="last", cost=0.31, picture="hue=b='-2*(1-min(t/{fade},1))'", sound="afade=in:st=0:d={fade}",
    ),
    Transformation(
        "fade_out", "time", (("fade", Range(0.2, 0.7, 0.0, digits=2, length_share=0.06)),), space="yuv",
        place="last", cost=0.13, picture="fade=out:st={end-fade-1/rate}:d={fade}",
        sound="afade=out:st={end-fade}:d={fade}",
    ),
    # Sound: pitch, then frequencies, then dynamics, then how loud.
    Transformation(
        "pitch", "audio", (("pitch", Range(0.97, 1.03, 1.0, least=0.008)),), sound="rubberband=pitch={pitch}",
        fallback="asetrate={sample_rate*pitch},aresample={sample_rate},"
        "adelay={tempo_lag}:all=1,atempo={1/pitch}",
    ),
    Transformation(
        "high_pass", "audio", (("hertz", Range(40, 120, digits=0)),),
        sound="highpass=f={hertz}",
    ),
    Transformation(
        "low_pass", "audio", (("hertz", Range(11_000, 15_000, digits=0)),),
        sound="lowpass=f={hertz}",
    ),
    Transformation(
        "bass", "audio", (("decibels", Range(-3.0, 3.0, 0.0, digits=1, least=1.0)),),
        sound="bass=g={decibels}",
    ),
    Transformation(
        "treble", "audio", (("decibels", Range(-3.0, 3.0, 0.0, digits=1, least=1.0)),),
        sound="treble=g={decibels}",
    ),
    Transformation(
        "presence", "audio",
        (("hertz", Range(800, 3000, digits=0)), ("decibels", Range(-2.5, 2.5, 0.0, digits=1, least=1.0))),
        sound="equalizer=f={hertz}:t=q:w=1:g={decibels}",
    ),
    Transformation(
        "exciter", "audio", (("amount", Range(1.0, 3.0, digits=2)),),
        sound="aexciter=amount={amount}",
    ),
    Transformation(
        "clarity", "audio", (("amount", Range(0.2, 1.0, 0.0, digits=2)),),
        sound="crystalizer=i={amount}",
    ),
    Transformation(
        "echo", "audio", (("delay", Range(15, 40, digits=0)), ("share", Range(0.05, 0.15))),
        sound="aecho=1:0.9:{delay}:{share}",
    ),
    Transformation(
        "tremolo", "audio", (("hertz", Range(3.0, 7.0, digits=1)), ("depth", Range(0.03, 0.1, 0.0))),
        sound="tremolo=f={hertz}:d={depth}",
    ),
    Transformation(
        "compress", "audio", (("ratio", Range(1.5, 3.0, 1.0, digits=2)),),
        sound="acompressor=threshold=0.1:ratio={ratio}:attack=10:release=150",
    ),
    Transformation(
        "volume", "audio", (("decibels", Range(-3.0, 2.0, 0.0, digits=1, least=0.8)),),
        sound="volume={decibels}dB,alimiter=limit=0.95:level=0:latency=1",
    ),
    # What the file is like; neutral is what the encoder does anyway.
    Transformation(
        "key_frames", "container", (("seconds", Range(1.0, 5.0, digits=1, length_share=0.5)),),
        encoding=(("key_seconds", "{seconds}"),),
    ),
    Transformation(
        "picture_quality", "container", (("crf", Range(18, 23, 20, digits=0, least=1)),),
        encoding=(("crf", "{crf}"),),
    ),
    Transformation(
        "b_frames", "container", (("frames", Range(0, 5, 3, digits=0, least=1)),),
        encoding=(("bf", "{frames}"),),
    ),
    Transformation(
        "references", "container", (("frames", Range(2, 4, digits=0)),), encoding=(("refs", "{frames}"),)
    ),
    Transformation(
        "sound_quality", "container", (("kilobits", Range(104, 128, digits=0)),),
        encoding=(("audio_bit_rate", "{1000*kilobits}"),),
    ),
)  # fmt: skip

TRANSFORMATIONS: Mapping[str, Transformation] = MappingProxyType({one.name: one for one in _ALL})
"""All of them, by name, whether this build of FFmpeg has their filters or not."""
SPEED_AND_PITCH = Transformation(
    "speed_and_pitch", "audio", TRANSFORMATIONS["speed"].ranges + TRANSFORMATIONS["pitch"].ranges,
    sound="asetrate={sample_rate*pitch},aresample={sample_rate},"
    "adelay={tempo_lag}:all=1,atempo={speed/pitch}",
)  # fmt: skip
"""What stands for the sound of `speed` and of the fallback of `pitch` in one chain."""
PLACE_IN_CHAIN = {name: place for place, name in enumerate(TRANSFORMATIONS)}


@functools.cache
def available() -> Mapping[str, Transformation]:
    """Those that work here, each with the texts that do: its own, or its fallback's."""
    found = {name: usable(one) for name, one in TRANSFORMATIONS.items()}
    return MappingProxyType({name: one for name, one in found.items() if one is not None})


def get(name: str) -> Transformation:
    """A transformation that works here.

    :raises UnknownName: there is none of that name.
    :raises UnsupportedMedia: this build of FFmpeg has no filter for it.
    """
    if name not in TRANSFORMATIONS:
        near = difflib.get_close_matches(name, TRANSFORMATIONS, n=1)
        cure = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(TRANSFORMATIONS)}."
        raise UnknownName("no transformation is called that", subject=name, cure=cure)
    if name not in available():
        cure = "Choose another, or install an FFmpeg that has it."
        raise UnsupportedMedia("needs a filter that this FFmpeg has not", subject=name, cure=cure)
    return available()[name]


def usable(one: Transformation) -> Transformation | None:
    """It, with texts from which graphs can be built here; None: neither its own will do nor its fallback."""
    if builds(one):
        return one
    if one.fallback:
        picture, sound = (one.fallback if text else "" for text in (one.picture, one.sound))
        instead = dataclasses.replace(one, picture=picture, sound=sound, fallback="")
        if builds(instead):
            return instead
    return None


def builds(one: Transformation) -> bool:
    """Whether its texts work here, found by building graphs from them and sending a frame through."""
    usual = Chosen(one, tuple((name, span.usual) for name, span in one.ranges))
    picture = VideoFrame(TRIED.width, TRIED.height, "rgb24" if one.space == "rgb" else "yuv420p")
    sound = AudioFrame("fltp", "stereo", 1024)
    sound.sample_rate = TRIED.sample_rate
    for frame in (picture, sound):
        frame.pts, frame.time_base = 0, Fraction(1, TRIED.sample_rate)
    try:
        _send(usual.text(one.picture, TRIED, TRIED.seconds), picture)
        _send(usual.text(one.sound, TRIED, TRIED.seconds), sound)
    except ConfigError:
        return False
    return True


def _send(text: str, frame: AnyFrame) -> None:
    if text:
        chain = Chain(text, frame, None)
        for one in (frame, None):
            for _ in chain.push(one):
                pass
