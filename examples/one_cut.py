"""Cut one span out of a video, to the frame, and then the same span by copying.

python examples/one_cut.py talk.mp4 2.5 5
"""

import sys
from pathlib import Path

from video.media.cut import cut

if len(sys.argv) != 4:
    sys.exit(__doc__)
source, start, end = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
for mode in ("exact", "copy"):
    clip = cut(source, f"{source.stem}-{mode}.mp4", start, end, mode=mode)
    print(f"{mode}: {clip.start:.3f} to {clip.end:.3f} s, {clip.frames} frames, {clip.bytes} bytes")
