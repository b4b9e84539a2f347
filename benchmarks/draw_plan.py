"""Draws `docs/smart-cut.svg`: a real plan over a real video, as `docs/media.md` shows it.

python benchmarks/draw_plan.py [PICTURE]
"""

from __future__ import annotations

import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import matplotlib as mpl
from _media import make_source

mpl.use("Agg")
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "plan", "font.size": 9})

from matplotlib import pyplot as plt  # noqa: E402  # after the choice of what draws

from video.media import base, splice  # noqa: E402

START, END = 1.3, 8.3
SHOWN = 10
"""Seconds of the source in the picture."""
COLOURS = {"copy": "#3a7d44", "encode": "#d1495b"}
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "smart-cut.svg"


def main(picture: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = make_source(Path(folder), SHOWN)
        with base.open_input(source) as container:
            video = base.video_stream(container)
            whole = splice.prepare(container, video, Fraction(0), Fraction(SHOWN))
            job = splice.prepare(container, video, Fraction(START), Fraction(END))
    print(job.plan)
    draw(job, whole, picture)


def draw(job: splice.Job, whole: splice.Job, picture: Path) -> None:
    tick = float(job.plan.tick)
    figure, (films, costs) = plt.subplots(
        2, 1, figsize=(8, 3.6), height_ratios=(3, 1.2), layout="constrained"
    )
    for one in whole.stored:
        at, size = one.pts * tick, one.size / 1000
        films.bar(at, 0.1 + size / 80, 0.04, 1.25, color="#20242c" if one.key else "#a9b0bd", align="edge")
    films.axvspan(START, END, color="#f0c808", alpha=0.18, lw=0)
    for span in job.plan.spans:
        left, width = span.first * tick, (span.stop - span.first) * tick
        films.barh(0.45, width, 0.6, left, color=COLOURS[span.kind])
        words = f"{span.kind} {span.frames} frames"
        if width > 1.5:
            films.text(left + width / 2, 0.45, words, ha="center", va="center", color="white")
        else:
            films.text(left + width / 2, 0.1, words, ha="center", va="top", color=COLOURS[span.kind])
    films.set(xlim=(0, SHOWN), ylim=(-0.35, 3), yticks=(0.45, 1.6), xlabel="seconds")
    films.set_yticklabels(("the clip", "the source"))
    films.set_title(
        "stored pictures by their size (dark: key frames), what was asked for, and what is done", size=9
    )
    for at, cost, kind in ((1, job.plan.cost, "copy"), (0, job.plan.exact_cost, "encode")):
        costs.barh(at, cost, color=COLOURS[kind])
        costs.text(cost, at, f" {cost:.0f} ms", va="center")
    costs.set(yticks=(1, 0), xlabel="predicted CPU time", xlim=(0, job.plan.exact_cost * 1.15), xticks=())
    costs.set_yticklabels(("smart", "exact"))
    for axes in (films, costs):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else PICTURE)
