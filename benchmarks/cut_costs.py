"""Measures what the planner of smart cuts reckons with (`video.media.smart.usual_costs`), in CPU ms.

    python benchmarks/cut_costs.py

Each kind of work is done by the code that clips go through, on one thread, for few and for many frames of a
natural video: the difference is what a frame costs, the rest what the work costs once. All kinds take turns,
five times over, and the fastest of each counts, since other work on the machine only ever adds time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _media import GROUP_SECONDS, make_source

from video import scope
from video.media import base, edges, encode, judges, nal, smart, splice
from video.media.cut import cut

FEW, MANY = 8, 40
"""Frames."""
ROUNDS = 5
COMPARED = splice._LOOK_BEFORE + splice._LOOK_AFTER
"""Frames that a check compares, of each splice."""
USUAL = smart.usual_costs


class Work:
    """Every kind of work on one source, for a number of frames."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source = source
        self.output = folder / "out.mp4"
        self.container = base.open_input(source)
        self.video = base.video_stream(self.container)
        self.tick = base.fraction(self.video.time_base)
        self.begin = round(2 / self.tick)  # where a key frame is
        stop = self.begin + MANY * base.usual_step(self.video)
        self.frames = list(edges.decoded(self.container, self.video, self.begin, stop))
        self.pictures = [edges.luma(frame) for _, frame in self.frames]

    def decode(self, count: int) -> None:
        stop = self.begin + count * base.usual_step(self.video)
        for _ in edges.decoded(self.container, self.video, self.begin, stop):
            pass

    def encode(self, count: int) -> None:
        context = self.video.codec_context
        sets, _ = nal.header_of(context.name, context.extradata)
        encoder = edges.EdgeEncoder(self.video, sets)
        for number, (pts, frame) in enumerate(self.frames[:count]):
            encoder.encode(pts, frame, begins=number == 0)
        encoder.finish()

    def exact(self, count: int) -> None:
        with encode.muxer(self.output, str(self.source)) as out:
            writer = encode.PictureWriter(out, self.video, self.frames[0][1])
            for pts, frame in self.frames[:count]:
                writer.write(pts - self.begin, frame)
            writer.finish(self.frames[count - 1][0] + base.usual_step(self.video) - self.begin)

    def copy(self, count: int) -> None:
        """One group of pictures, or two: from key frame to key frame, so that nothing is encoded."""
        seconds = GROUP_SECONDS * (1 if count == FEW else 2)
        cut(self.source, self.output, 2, 2 + seconds, "smart", as_stored=True)

    def compare(self, count: int) -> None:
        for (_, frame), picture in list(zip(self.frames, self.pictures, strict=True))[:count]:
            judges.ssim(edges.luma(frame), picture)


def costs_of(source: Path, folder: Path) -> smart.Costs:
    work = Work(source, folder)
    kinds: dict[str, Callable[[int], None]] = {
        name: getattr(work, name) for name in ("decode", "encode", "exact", "copy", "compare")
    }
    fastest = {(name, count): float("inf") for name in kinds for count in (FEW, MANY)}
    for _ in range(ROUNDS):
        for name, count in fastest:
            before = time.process_time()
            kinds[name](count)
            spent = time.process_time() - before
            fastest[name, count] = min(fastest[name, count], spent * 1000)
    each = {name: (fastest[name, MANY] - fastest[name, FEW]) / (MANY - FEW) for name in kinds}
    each["copy"] *= (MANY - FEW) / (GROUP_SECONDS * float(base.frame_rate(work.video) or 25))
    work.container.close()
    once = fastest["encode", FEW] - FEW * each["encode"]
    splices = max(0.0, once) + COMPARED * each["compare"]
    return smart.Costs(each["decode"], each["encode"], each["exact"], each["copy"], splices)


def main() -> None:
    smart.usual_costs = lambda *_, **__: smart.Costs(1, 1, 1e9, 1, 1)  # so that copies are made at any price
    names = ("decode", "encode", "exact", "copy", "splice")
    heads = "".join(f"{name:>9}" for name in names)
    print(f"{'':18}{heads}   as shares of exact (what is reckoned with)")
    with tempfile.TemporaryDirectory() as name, scope.entered(scope.Slot(1)):
        for codec, height in (("libx264", 720), ("libx264", 360), ("libx265", 720), ("libx265", 360)):
            folder = Path(name) / f"{codec}-{height}"
            folder.mkdir()
            found = costs_of(make_source(folder, 7, height, codec=codec, sound=False), folder)
            usual = USUAL({"libx264": "h264", "libx265": "hevc"}[codec], height * 16 // 9, height)
            figures = "".join(f"{getattr(found, one):9.2f}" for one in names)
            shares = "  ".join(
                f"{getattr(found, one) / found.exact:.3f} ({getattr(usual, one) / usual.exact:.3f})"
                for one in names
            )
            print(f"{codec:10}{height:4}p   {figures}   {shares}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
