"""Cut one span out of a video to the frame, copying what can be copied: first the plan, then what was done.

python examples/smart_cut.py [talk.mp4 2.5 5]
"""

import sys
from fractions import Fraction
from pathlib import Path

from video.media import base, splice
from video.media.cut import cut
from video.media.nal import Unspliceable
from video.media.sample import write_sample

said = sys.argv[1:] or (write_sample(Path("samples"), seconds=10), 2.5, 5)
source, start, end = Path(said[0]), float(said[1]), float(said[2])

with base.open_input(source) as container:
    zero = base.origin(container)
    try:
        job = splice.prepare(
            container, base.video_stream(container), zero + Fraction(start), zero + Fraction(end)
        )
        print(job.plan)
    except Unspliceable as why:
        print(f"nothing to plan: {why}")

clip = cut(source, f"{source.stem}-smart.mp4", start, end, mode="smart")
print(f"{clip.path}: {clip.mode}, since {clip.reason}; {clip.frames} frames, {clip.bytes} bytes")
for span in clip.spans:
    print(f"  {span.kind:6}  {span.start:9.3f} s to {span.end:9.3f} s  {span.frames:5} frames")
