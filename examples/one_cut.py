"""Cut one span out of a video, to the frame, and then the same span by copying.

python examples/one_cut.py [talk.mp4 2.5 5]
"""

import sys
from pathlib import Path

from video.media.cut import cut
from video.media.sample import write_sample

said = sys.argv[1:] or (write_sample(Path("samples"), seconds=10), 2.5, 5)
source, start, end = Path(said[0]), float(said[1]), float(said[2])
for mode in ("exact", "copy"):
    clip = cut(source, f"{source.stem}-{mode}.mp4", start, end, mode=mode)
    print(f"{mode}: {clip.start:.3f} to {clip.end:.3f} s, {clip.frames} frames, {clip.bytes} bytes")
