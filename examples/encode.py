"""Encode videos, each in two sizes and decoded once, and print what came of each.

python examples/encode.py [talk.mp4 other.mov ...]
"""

import sys
from pathlib import Path

from video import VideoEncodingProcessor
from video.media.sample import write_sample

sources = sys.argv[1:] or [write_sample(Path("samples"), seconds=10)]

with VideoEncodingProcessor() as processor:
    responses = processor.batch_encode_videos(sources, quality="medium", ladder=(720, 180))
for response in responses:
    for one in response.outputs:
        print(f"{one.path}: {one.width}x{one.height}, {one.frames} frames, {one.bytes} bytes")
sys.exit("\n".join(response.error.message for response in responses if response.error) or None)
