"""Encode the videos that are named, each in two sizes and decoded once, and print what came of each.

python examples/encode.py talk.mp4 other.mov
"""

import sys

from video import VideoEncodingProcessor

if not sys.argv[1:]:
    sys.exit(__doc__)

with VideoEncodingProcessor() as processor:
    for response in processor.batch_encode_videos(sys.argv[1:], quality="medium", ladder=(720, 360)):
        if response.error is not None:
            print("failed:", response.error.message)
        for one in response.outputs:
            print(f"{one.path}: {one.width}x{one.height}, {one.frames} frames, {one.bytes} bytes")
