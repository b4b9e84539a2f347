"""What each transformation costs: CPU milliseconds for a 720p frame, for the catalogue's `cost`.

    python benchmarks/measure_transformations.py [--write]

Each chain gets the same pictures of natural video, decoded beforehand; what feeding and fetching costs by
itself is taken off. `--write` puts the figures into video/media/catalogue.py.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
from _media import make_source
from av.video.frame import VideoFrame

from video import scope
from video.media import catalogue, fuse
from video.media.chain import Chain
from video.media.transform import Chosen, Facts

PICTURES = 48
ROUNDS = 5
FACTS = Facts(1280, 720, Fraction(25), 10.0, 48_000)


def pictures(source: Path, space: str) -> list[VideoFrame]:
    with av.open(str(source)) as container:
        found = []
        for frame in container.decode(video=0):
            found.append(frame.reformat(format="rgb24" if space == "rgb" else "yuv420p"))
            if len(found) == PICTURES:
                return found
    raise SystemExit("the source is too short")


def milliseconds(text: str, frames: list[VideoFrame], wanted: str | None = None) -> float:
    """Of the fastest round, for each frame that goes in."""
    best = float("inf")
    for _ in range(ROUNDS):
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = 25 + number, Fraction(1, 25)
        began = time.process_time()
        chain = Chain(text, frames[0], wanted)
        for frame in (*frames, None):
            for _ in chain.push(frame):
                pass
        best = min(best, time.process_time() - began)
    return 1000 * best / len(frames)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, scope.entered(scope.Slot(1)):
        source = make_source(Path(folder), seconds=4)
        yuv, rgb = pictures(source, "yuv"), pictures(source, "rgb")
    idle = {"yuv": milliseconds("null", yuv), "rgb": milliseconds("null", rgb)}
    found = {}
    for name, one in catalogue.available().items():
        if not one.picture:
            continue
        most = Chosen(one, tuple((key, span.high) for key, span in one.ranges))
        space = "rgb" if one.space == "rgb" else "yuv"
        text = most.text(one.picture, FACTS, FACTS.seconds)
        found[name] = max(0.0, milliseconds(text, rgb if space == "rgb" else yuv) - idle[space])
        print(f"{name:16}{one.layer:10}{found[name]:7.2f}  {text}", flush=True)
    both = milliseconds(f"{fuse.RGB},{fuse.YUV}", yuv) - idle["yuv"]
    print(f"into RGB and back: {both:.2f}, one way about {both / 2:.2f}")
    if "--write" in sys.argv[1:]:
        path = Path(catalogue.__file__)
        text = path.read_text("utf-8")
        for name, cost in found.items():
            entry = re.compile(rf'("{name}", "\w+",.*?cost=)[\d.]+', re.DOTALL)
            text = entry.sub(rf"\g<1>{cost:.2g}", text, count=1)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
