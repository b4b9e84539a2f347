"""Cut the highlights out of the videos that are named, and print what came of each.

python examples/cut_clips.py talk.mp4 https://example.org/other.mp4
"""

import sys

from video import VideoClipProcessor, VideoClipRequest

if not sys.argv[1:]:
    sys.exit(__doc__)
requests = [VideoClipRequest(source=name, count=2, max_clip_length=10) for name in sys.argv[1:]]

with VideoClipProcessor() as processor:
    for response in processor.process_batch_parallel(requests):
        if response.error is not None:
            print("failed:", response.error.message)
        for clip in response.clips:
            print(
                f"{clip.path}: {clip.start:.2f} to {clip.end:.2f} s, {clip.frames} frames, {clip.reasons[0]}"
            )
