"""Encode a video small, measure how near that comes to it, and put pictures of both side by side.

python examples/compare.py [talk.mp4]
"""

import sys
from pathlib import Path

from video import VideoEncodingProcessor
from video.media.quality import measure_quality
from video.media.sample import write_sample
from video.media.stills import side_by_side

source = sys.argv[1] if sys.argv[1:] else write_sample(Path("samples"), seconds=10)

with VideoEncodingProcessor() as processor:
    (response,) = processor.batch_encode_videos([source], quality="low", output_dir="small")
if response.error is not None:
    sys.exit(response.error.message)
small = response.outputs[0].path

found = measure_quality(small, source)
assert found.likeness is not None  # there is a reference
print(f"{found.frames} frames, SSIM {found.likeness.ssim:.3f}, the worst {found.likeness.ssim_worst:.3f}")
print(f"PSNR {found.likeness.psnr:.1f} dB; edges are {found.blur:.1f} pixels wide")
print(side_by_side(small, source, "both.png", count=3))
