"""The plan of a smart cut: which pictures of a clip are copied as stored, and which are encoded anew.

A pure function of the packet index: nothing is read, decoded or written here. A clip is up to three spans:
its head, up to the first key frame, is encoded; what follows is copied, as far as the stored order allows;
the few pictures left at the end, which need others from beyond it, are encoded. Where that is not cheaper
than to encode all of it, the plan says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from video.media.index import Stored
from video.models import Mode

Kind = Literal["encode", "copy"]

_LARGE = 1280 * 720
"""Pixels of 720p."""


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU milliseconds, for a frame unless said otherwise."""

    decode: float
    encode: float
    """At the edges, in the source's own codec."""
    exact: float
    """Anew, as mode `exact` does it."""
    copy: float
    splice: float
    """Once for each place where a copied span meets an encoded one: encoder, check."""


# Decoding, encoding at an edge, and a splice, as shares of what encoding anew takes for a frame. Measured by
# benchmarks/cut_costs.py at 720p and 360p (0.18 and 0.23, 0.55 and 0.79, 2.4 and 2.4; of HEVC 0.36 and 0.36,
# 2.2 and 2.8, 5.3 and 4.2). Encoding a frame of 720p took 9 ms on a quiet core, copying one 0.02 to 0.06.
_SHARES = {"h264": (0.2, 0.65, 2.4), "hevc": (0.36, 2.4, 4.7)}
_EXACT, _COPY = 9.0, 0.05


def usual_costs(codec: str, width: int, height: int, *, deep: bool = False) -> Costs:
    """What frames of this kind cost on one core, scaled with their size; only the proportions matter.

    :param deep: more than 8 bits a sample.
    """
    exact = _EXACT * width * height / _LARGE
    decode, encode, splice = (share * exact for share in _SHARES.get(codec, _SHARES["hevc"]))
    more = 1.5 if deep else 1.0
    return Costs(decode * more, encode * more, exact, _COPY, splice)


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring pictures of a clip that are treated alike."""

    kind: Kind
    first: int
    """Ticks: when its first picture is shown."""
    stop: int
    """Ticks: when the first picture after it is shown, or, of the last span, when the clip ends."""
    frames: int
    packets: tuple[int, int]
    """Of a copied span: from this packet of the index to before that one; those shown before `first` are left
    out. Of an encoded one: those that are decoded for it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a clip."""

    mode: Mode
    """`smart`: spans are copied and encoded; `copy`: all is copied; `exact`: all is encoded anew."""
    reason: str
    spans: tuple[Span, ...]
    """In the order shown; without a gap. Of `exact`, one."""
    cost: float
    """CPU milliseconds, predicted."""
    exact_cost: float
    """The same for encoding all of it anew."""
    tick: Fraction = Fraction(1)
    zero: int = 0
    """Ticks: what the printed plan counts from."""

    @property
    def frames(self) -> int:
        return sum(span.frames for span in self.spans)

    @property
    def copied(self) -> int:
        """Frames that are copied."""
        return sum(span.frames for span in self.spans if span.kind == "copy")

    def __str__(self) -> str:
        lines = [f"{self.mode}: {self.reason}"]
        for span in self.spans:
            start, end = (float((at - self.zero) * self.tick) for at in (span.first, span.stop))
            lines.append(f"  {span.kind:6}  {start:9.3f} s to {end:9.3f} s  {span.frames:5} frames")
        lines.append(f"  about {self.cost:.0f} ms of CPU; exact: {self.exact_cost:.0f} ms")
        return "\n".join(lines)


def plan(
    stored: Sequence[Stored],
    first: int,
    stop: int,
    costs: Costs,
    *,
    tick: Fraction = Fraction(1),
    zero: int = 0,
) -> Plan:
    """Decide how to write the pictures that are shown from `first` on and before `stop`.

    The spans hold every picture of the request once, in order, and copied ones begin at a key frame. The plan
    never costs more than `exact`, by its own prediction.

    :param stored: the index, from a key frame at or before `first`, as `index.read` gives it.
    :param first, stop: ticks.
    :param tick: seconds; with `zero`, only for printing.
    """
    wanted = sorted(at for at, one in enumerate(stored) if first <= one.pts < stop and not one.hidden)
    shown = sorted(wanted, key=lambda at: stored[at].pts)
    rank = {at: number for number, at in enumerate(shown)}
    times = [stored[at].pts for at in shown]
    exact_cost = len(shown) * costs.exact + (max(wanted, default=-1) + 1) * costs.decode

    def as_exact(reason: str) -> Plan:
        spans: tuple[Span, ...] = ()
        if times:
            spans = (Span("encode", times[0], stop, len(times), (0, max(wanted) + 1)),)
        return Plan("exact", reason, spans, exact_cost, exact_cost, tick, zero)

    if not shown:
        return as_exact("no frame begins there")
    if len(set(times)) < len(times):
        return as_exact("two pictures have the same time")
    if any(one.hidden and times[0] < one.pts < times[-1] for one in stored):
        return as_exact("an edit list hides pictures in the middle")
    begin = next((at for at in wanted if stored[at].key), None)
    if begin is None:
        return as_exact("no key frame that a copy could begin at")
    end, copied = _copied(stored, rank, begin)
    head, tail = shown[: rank[begin]], shown[rank[begin] + copied :]
    middle = shown[rank[begin] : rank[begin] + copied]
    pieces: tuple[tuple[Kind, list[int]], ...] = (("encode", head), ("copy", middle), ("encode", tail))
    spans = []
    cost = (end - begin) * costs.copy + (bool(head) + bool(tail)) * costs.splice
    after = [*times, stop]
    for kind, piece in pieces:
        if not piece:
            continue
        packets = (begin, end)
        if kind == "encode":
            packets = (_key_before(stored, piece), max(piece) + 1)
            # What is decoded once for the encoder is decoded once more, from the clip, for the check.
            cost += (packets[1] - packets[0]) * costs.decode + len(piece) * (costs.encode + costs.decode)
        begins, ends = stored[piece[0]].pts, after[rank[piece[-1]] + 1]
        spans.append(Span(kind, begins, ends, len(piece), packets))
    if cost > exact_cost:
        return as_exact(f"copying {copied} of {len(shown)} frames would save nothing")
    if not head and not tail:
        return Plan("copy", "it begins and ends where a copy can", tuple(spans), cost, exact_cost, tick, zero)
    reason = f"{copied} of {len(shown)} frames can be copied"
    return Plan("smart", reason, tuple(spans), cost, exact_cost, tick, zero)


def _copied(stored: Sequence[Stored], rank: dict[int, int], begin: int) -> tuple[int, int]:
    """(packet before which a copy from `begin` ends, its frames).

    The longest that holds no picture beyond the request and leaves no hole in the order shown.
    """
    end, copied = begin, 0
    count = latest = 0
    for at in range(begin, len(stored)):
        if stored[at].pts < stored[begin].pts:  # needs pictures before the key frame; nothing after needs it
            continue
        if at not in rank:
            break
        count += 1
        latest = max(latest, rank[at] - rank[begin] + 1)
        if count == latest:
            end, copied = at + 1, count
    return end, copied


def _key_before(stored: Sequence[Stored], piece: Sequence[int]) -> int:
    """The packet that decoding must begin at for these pictures, given in the order shown."""
    earliest, time = min(piece), stored[piece[0]].pts
    keys = (at for at in range(earliest, -1, -1) if stored[at].key and stored[at].pts <= time)
    return next(keys, 0)
