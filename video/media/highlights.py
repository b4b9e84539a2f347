"""Where a video stands out: measured from its key frames and its sound, without decoding the rest.

`measure_signals` reads the file once and decodes its sound and its key frames only: 0.1 to 0.2 CPU seconds
for a minute of 720p, where encoding that minute anew takes about 20. `choose` is pure: signals in, clips
out, so it can be tried on plain numbers.

The score is a heuristic, not a prediction of what anybody will like. It compares a video with itself, so
scores of different videos do not compare. It is the mean of three sub-scores, each 0 to 1, weighted by
`WEIGHTS`; a video without sound is scored by the other two.

- loudness: the clip's windows against the video's quiet and loud ones.
- motion: change between neighbouring key pictures against the video's still and lively stretches.
- cuts: scene changes in the clip against the most that any clip of that length has.

Limits: with a key frame every 2 s (usual for the web) motion and cuts are known to 2 s; with x264's default
of up to 250 frames only to some 10 s, but then a key frame stands exactly at most cuts.
"""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame

from video.errors import ConfigError, InvalidMedia
from video.media import base
from video.media.probe import LONGEST_SECONDS
from video.media.scenes import KEY_SPACING, OVER_USUAL, SCENE_CHANGE, Pictures

Floats = npt.NDArray[np.floating[Any]]

WINDOW = 0.5
"""Seconds of sound that one figure of loudness stands for."""
SILENCE = -60.0
"""dBFS; anything quieter counts as this."""

WEIGHTS = {"loudness": 0.5, "motion": 0.25, "cuts": 0.25}
"""Loudness counts for half, being known to half a second; pictures only from key frame to key frame."""
LOUDNESS_SPAN = (6.0, 20.0)
"""dB between ordinary and outstanding: at least, so that hiss is not stretched to a scale; at most, so that
a silent stretch does not make all speech look alike."""
MOTION_SPAN = (0.02, 0.25)
"""The same for change between key pictures."""
NOTABLE = 0.25
"""Sub-score from which loudness and motion are named among a clip's reasons."""
SHARE = 0.75
"""Clips take up to this share of the video, so that there is something to choose."""
SNAP = 1.5
"""Seconds that an end of a clip may move, at most, to meet a scene change or a pause."""
MOST_STARTS = 10_000
"""How many starts of a clip are compared at most: in a video of over 80 minutes, they are more than WINDOW
apart."""
PAUSE = 6.0
"""dB under the video's median loudness at which a moment is a pause."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What was measured in one video; times are seconds as a player shows them."""

    duration: float
    """End of the last picture."""
    key_times: tuple[float, ...]
    """Ascending times of the key frames that were decoded; empty where an edit list hides the only one."""
    change: tuple[float, ...]
    """One for each of `key_times`, as `scenes.Pictures` has it."""
    off_grid: tuple[float, ...]
    """Those of `key_times` that came before their turn: most encoders put such a key frame at a cut."""
    loudness: tuple[float, ...]
    """RMS level of all channels in dBFS, for each WINDOW from 0 on; empty without sound."""


@dataclass(frozen=True, slots=True)
class Highlight:
    """One stretch worth a clip. The score and its parts are 0 to 1, relative to the rest of the video."""

    start: float
    """Seconds; the picture at this time is in the clip."""
    end: float
    """Seconds; the picture at this time is not."""
    score: float
    reasons: tuple[str, ...]
    """At least one, in plain words with figures."""
    loudness: float | None
    """None where the video has no sound."""
    motion: float
    cuts: float


def find_highlights(
    source: str | os.PathLike[str], count: int = 3, min_length: float = 3.0, max_length: float = 60.0
) -> list[Highlight]:
    """The best clips of a video file: `choose` from what `measure_signals` finds. See both for errors."""
    _check_request(count, min_length, max_length)
    return choose(measure_signals(source), count, min_length, max_length)


# Measuring


def measure_signals(source: str | os.PathLike[str]) -> Signals:
    """Read `source` once; decode its sound and its key frames.

    Sound that cannot be decoded counts as none; damaged pictures are passed over.

    :raises SourceNotFound, SourceError: it cannot be read.
    :raises UnsupportedMedia: it has no video stream.
    :raises InvalidMedia: it is not a media file, or none of its key frames can be decoded.
    """
    with base.open_input(source) as container:
        video = base.video_stream(container)
        video.codec_context.skip_frame = "NONKEY"
        sound = next((stream for stream in container.streams.audio if stream.codec_context), None)
        tick, zero = base.fraction(video.time_base), base.origin(container)

        pictures, levels = Pictures(), _Levels(zero)
        keys: list[int] = []
        end, asked = -math.inf, -math.inf
        for packet in base.packets(container, *((video, sound) if sound else (video,))):
            if sound and packet.stream_index == sound.index:
                levels.add(base.decoded(sound, packet))
                continue
            pts = packet.dts if packet.pts is None else packet.pts
            if pts is None or packet.is_discard:  # discarded ones precede what an edit list shows
                continue
            end = max(end, pts + (packet.duration or base.usual_step(video)))
            if packet.is_keyframe:
                keys.append(pts)
                if (pts - asked) * tick >= KEY_SPACING:
                    asked = pts
                    pictures.add(base.decoded(video, packet))
        pictures.add(base.decoded(video, None))
        if sound:
            levels.add(base.decoded(sound, None))

    if end == -math.inf or (keys and not pictures.stamps):
        cause = "has no picture that can be decoded" if keys else "has no video frames"
        raise InvalidMedia(cause, subject=os.fspath(source), cure="Download or copy it again.")

    def seconds(pts: float) -> float:
        return float(Fraction(pts) * tick - zero)

    if (
        seconds(end) > LONGEST_SECONDS
    ):  # one damaged timestamp; tables of so many windows would fill the memory
        cause = f"has a picture at {seconds(end):.0f} s, which is no time of a video"
        raise InvalidMedia(cause, subject=os.fspath(source), cure="Repair it, or cut it by hand.")

    early = _off_grid(keys)
    duration = seconds(end)
    return Signals(
        duration=duration,
        key_times=tuple(map(seconds, pictures.stamps)),
        change=tuple(pictures.change),
        off_grid=tuple(seconds(pts) for pts in pictures.stamps if pts in early),
        loudness=levels.windows(duration),
    )


def _off_grid(keys: list[int]) -> set[int]:
    """Timestamps that come well before the longest interval between key frames is over.

    Encoders restart that interval at each key frame, and end it early at a cut.
    """
    keys = sorted(keys)
    steps = [later - earlier for earlier, later in itertools.pairwise(keys)]
    return {key for key, step in zip(keys[1:], steps, strict=True) if step < 0.9 * max(steps)}


class _Levels:
    """The mean power of sound, window by window."""

    def __init__(self, zero: Fraction) -> None:
        self._zero = float(zero)
        self._power: list[float] = []
        self._samples: list[int] = []

    def add(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            if frame.pts is None or not (frame.sample_rate and frame.samples and frame.layout.nb_channels):
                continue
            sound = _amplitudes(frame)
            start = float(frame.pts * base.fraction(frame.time_base)) - self._zero
            # Each 50 ms at most counts for the window that its middle falls into.
            step = max(1, frame.sample_rate // 20)
            for first in range(0, sound.shape[1], step):
                piece = sound[:, first : first + step]
                power = float(np.vdot(piece, piece))
                window = math.floor((start + (first + piece.shape[1] / 2) / frame.sample_rate) / WINDOW)
                if not 0 <= window < LONGEST_SECONDS / WINDOW or not math.isfinite(power):
                    continue
                missing = window + 1 - len(self._power)
                self._power += [0.0] * missing
                self._samples += [0] * missing
                self._power[window] += power
                self._samples[window] += piece.size

    def windows(self, duration: float) -> tuple[float, ...]:
        """dBFS of each window up to `duration`; empty if there was no sound at all."""
        if not self._samples:
            return ()
        count = math.ceil(duration / WINDOW)
        levels = [
            max(SILENCE, 10 * math.log10(power / samples)) if power > 0 else SILENCE
            for power, samples in zip(self._power[:count], self._samples, strict=False)
        ]
        return (*levels, *[SILENCE] * (count - len(levels)))


_SAMPLES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
"""NumPy's name of each of FFmpeg's kinds of samples."""


def _amplitudes(frame: AudioFrame) -> npt.NDArray[np.float32]:
    """The samples as -1 to 1, shape (channels, samples)."""
    kind = np.dtype(_SAMPLES[frame.format.name.removesuffix("p")])
    count = frame.samples * (1 if frame.format.is_planar else frame.layout.nb_channels)
    samples = np.stack([np.frombuffer(memoryview(plane), kind, count) for plane in base.sound_planes(frame)])
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    whole = np.float32(2 ** (8 * samples.dtype.itemsize - 1))
    return samples.astype(np.float32) / whole - (samples.dtype.kind == "u")


# Choosing


def choose(
    signals: Signals, count: int = 3, min_length: float = 3.0, max_length: float = 60.0
) -> list[Highlight]:
    """The `count` clips that together score best, in order of time; pure and deterministic.

    They never overlap, and each is `min_length` to `max_length` seconds long. A video no longer than
    `min_length` gives one clip, the whole of it; one too short for `count` clips gives as many as fit.
    Clips are of `max_length`, or shorter so that together they take no more than SHARE of the video; their
    ends then move by up to SNAP seconds to a scene change or a pause, where one is near. A video in which
    nothing stands out gives clips at even distances.

    :raises ConfigError: an argument is out of range.
    """
    _check_request(count, min_length, max_length)
    duration = signals.duration
    if not (math.isfinite(duration) and duration > 0):
        raise ConfigError(f"duration={duration!r}: must be over 0 seconds")
    if duration <= min_length:
        why = f"the whole video: {duration:.3g} s, not longer than the shortest clip asked for"
        return [_Judge(signals, duration).highlight(0.0, duration, (why,))]

    count = min(count, math.floor(duration / min_length))
    length = max(min_length, min(max_length, SHARE * duration / count))
    judge = _Judge(signals, length)
    # A whole number of steps to a clip, so that as many clips fit as the arithmetic above says.
    steps = max(1, math.ceil(length / max(WINDOW, duration / MOST_STARTS)))
    step = length / steps
    starts = np.arange(math.floor((duration - length) / step + 1e-6) + 1) * step
    scores = judge.score(starts, starts + length, margin=judge.reach)
    if np.ptp(scores) < 0.01:
        gap = (duration - count * length) / (count + 1)
        chosen = [gap + n * (length + gap) for n in range(count)]
        why = "nothing stands out: taken evenly"
    else:
        chosen = [float(starts[n]) for n in _best_apart(scores, count, steps)]
        why = "nothing stands out here"

    clips = []
    free = 0.0
    for start, limit in zip(chosen, (*chosen[1:], duration), strict=True):
        start, begins = judge.snap(start, free, limit - min_length)
        end, ends = judge.snap(start + length, start + min_length, min(start + max_length, limit))
        reasons = judge.reasons(start, end) or (why,)
        if begins:
            reasons = (*reasons, f"starts {begins}")
        if ends:
            reasons = (*reasons, f"ends {ends}")
        clips.append(judge.highlight(start, end, reasons))
        free = end
    return clips


def _best_apart(scores: Floats, count: int, apart: int) -> list[int]:
    """The `count` positions, at least `apart` from each other, whose scores have the largest sum.

    Dynamic programming over positions, one round for each clip, so that the best single clip cannot stand
    where it leaves no room for two good ones.
    """
    rounds = []
    before = np.zeros(len(scores))
    for _ in range(count):
        total = before + scores
        rounds.append(total)
        # The best that earlier clips can add up to, for a clip that stands `apart` after them.
        before = np.full(len(scores), -np.inf)
        before[apart:] = np.maximum.accumulate(total)[: max(0, len(scores) - apart)]
    chosen: list[int] = []
    end = len(scores)
    for total in reversed(rounds):
        chosen.append(int(np.argmax(total[:end])))
        end = chosen[-1] - apart + 1
    return chosen[::-1]


class _Judge:
    """Scores and explains stretches of one video, from `start` to `end` seconds (numbers or arrays).

    `length` is that of the clips to be chosen, in seconds.
    """

    def __init__(self, signals: Signals, length: float) -> None:
        windows = math.ceil(signals.duration / WINDOW)
        self.reach = min(SNAP, length / 4)
        self._edges = np.arange(windows + 1) * WINDOW

        key_times, change = np.array(signals.key_times), np.array(signals.change)
        off_grid = np.isin(key_times, signals.off_grid)
        usual = float(np.median(change[1:])) if len(change) > 1 else 0.0
        # Where an encoder put a key frame before its turn, it took it for a cut, too.
        is_cut = (change >= SCENE_CHANGE) & (off_grid | (change >= OVER_USUAL * usual))
        self._cuts = key_times[is_cut]
        gap = np.diff(key_times, prepend=-math.inf)
        self._exact_cuts = key_times[is_cut & (off_grid | (gap <= WINDOW))]

        # What is not known counts as usual: before the first key frame, after the last, and before a cut,
        # whose change says nothing of the motion that led up to it.
        known = ~is_cut & (np.arange(len(change)) > 0)
        self._usual = float(np.median(change[known])) if known.any() else 0.0
        values = np.append(np.where(known, change, self._usual), self._usual)
        motion = values[np.searchsorted(key_times, (self._edges[1:] + self._edges[:-1]) / 2)]
        self._change = self._integral(motion)
        self._motion = self._integral(_standing_out(motion, MOTION_SPAN))

        self._levels = np.array(signals.loudness)[:windows]
        self._loudness = self._power = self._edges * 0
        self._pauses = self._edges[:0]
        if self._levels.size:
            levels = np.pad(self._levels, (0, windows - len(self._levels)), constant_values=SILENCE)
            self._median = float(np.median(levels))
            self._loudness = self._integral(_standing_out(levels, LOUDNESS_SPAN))
            self._power = self._integral(10 ** (levels / 10))
            beside = np.pad(levels, 1, mode="edge")
            quiet = (levels <= self._median - PAUSE) & (levels <= np.minimum(beside[:-2], beside[2:]))
            self._pauses = (self._edges[:-1] + WINDOW / 2)[quiet]

        starts = np.arange(0, signals.duration - length + WINDOW / 2, WINDOW)
        counts = self._count_cuts(starts + self.reach, starts + length - self.reach)
        self._most_cuts = float(counts.max()) if np.ptp(counts) else math.inf

    def _integral(self, values: Floats) -> Floats:
        return np.concatenate(([0.0], np.cumsum(values * WINDOW)))

    def _mean(self, integral: Floats, start: Floats, end: Floats) -> Floats:
        whole = np.interp(end, self._edges, integral) - np.interp(start, self._edges, integral)
        return np.asarray(whole / np.maximum(end - start, 1e-9))

    def _count_cuts(self, start: Floats, end: Floats) -> Floats:
        """Scene changes inside; one at the very start is not seen in the clip."""
        count = np.searchsorted(self._cuts, end, "left") - np.searchsorted(self._cuts, start, "right")
        return np.asarray(count, float)

    def parts(self, start: Floats, end: Floats, margin: float = 0.0) -> dict[str, Floats]:
        """The sub-scores by name, 0 to 1; without sound, no loudness.

        :param margin: scene changes that are no further than this from an end do not count; for ends that
            may still move to them.
        """
        parts = {
            "motion": self._mean(self._motion, start, end),
            "cuts": self._count_cuts(start + margin, end - margin) / self._most_cuts,
        }
        if self._levels.size:
            parts["loudness"] = self._mean(self._loudness, start, end)
        return {name: np.clip(part, 0.0, 1.0) for name, part in parts.items()}

    def score(self, start: Floats, end: Floats, margin: float = 0.0) -> Floats:
        parts = self.parts(start, end, margin)
        weight = sum(WEIGHTS[name] for name in parts)
        return np.asarray(sum(WEIGHTS[name] * part for name, part in parts.items()) / weight)

    def snap(self, target: float, low: float, high: float) -> tuple[float, str]:
        """Where, from `low` to `high`, an end of a clip near `target` should be, and words for that place."""
        low_near, high_near = max(low, target - self.reach), min(high, target + self.reach)
        for times, words in ((self._exact_cuts, "at a scene change"), (self._pauses, "in a pause")):
            near = times[(times >= low_near) & (times <= high_near)]
            if near.size:
                return float(near[np.argmin(np.abs(near - target))]), words
        return min(max(target, low), high), ""

    def reasons(self, start: float, end: float) -> tuple[str, ...]:
        """What stands out, in words; empty if nothing does."""
        a, b = np.asarray(start), np.asarray(end)
        found = []
        if self._levels.size:
            level = 10 * math.log10(float(self._mean(self._power, a, b)))
            if level - self._median >= 2 and float(self._mean(self._loudness, a, b)) >= NOTABLE:
                found.append(
                    f"loud: {level - self._median:.0f} dB over the video's median"
                    if self._median > SILENCE
                    else f"loud: {level:.0f} dBFS in a mostly silent video"
                )
        motion, usual = float(self._mean(self._change, a, b)), self._usual
        if motion >= 1.25 * usual and float(self._mean(self._motion, a, b)) >= NOTABLE:
            found.append(
                f"lively: {motion / usual:.1f} times the video's usual motion"
                if usual >= 0.001
                else "lively in a mostly still video"
            )
        cuts = int(self._count_cuts(a, b))
        if cuts and self._most_cuts < math.inf:
            found.append(f"{cuts} scene change{'s' if cuts > 1 else ''}")
        return tuple(found)

    def highlight(self, start: float, end: float, reasons: tuple[str, ...]) -> Highlight:
        a, b = np.asarray(start), np.asarray(end)
        parts = {name: round(float(part), 4) for name, part in self.parts(a, b).items()}
        return Highlight(
            start=start,
            end=end,
            score=round(float(self.score(a, b)), 4),
            reasons=reasons,
            loudness=parts.get("loudness"),
            motion=parts["motion"],
            cuts=parts["cuts"],
        )


def _standing_out(values: Floats, span: tuple[float, float]) -> Floats:
    """Each value from 0 (ordinary: the 10th percentile) to 1 (the 95th).

    :param span: the least and the greatest distance that those two are taken to have.
    """
    ordinary, outstanding = np.percentile(values, (10, 95))
    ordinary = max(ordinary, outstanding - span[1])
    return np.asarray(np.clip((values - ordinary) / max(outstanding - ordinary, span[0]), 0.0, 1.0))


def _check_request(count: int, min_length: float, max_length: float) -> None:
    if count < 1:
        raise ConfigError(f"count={count}: must be at least 1")
    if not (0 < min_length <= max_length < math.inf):
        raise ConfigError(
            f"min_length={min_length:g}, max_length={max_length:g}: "
            "must be over 0 seconds, the first not the larger"
        )
