"""Cut the highlights out of videos, and print what came of each.

python examples/cut_clips.py [talk.mp4 https://example.org/other.mp4 ...]
"""

import sys
from pathlib import Path

from video import VideoClipProcessor, VideoClipRequest
from video.media.sample import write_sample

sources = sys.argv[1:] or [write_sample(Path("samples"), seconds=10)]
requests = [VideoClipRequest(source=source, count=2, max_clip_length=10) for source in sources]

with VideoClipProcessor() as processor:
    for response in processor.process_batch_parallel(requests):
        if response.error is not None:
            print("failed:", response.error.message)
        for clip in response.clips:
            print(
                f"{clip.path}: {clip.start:.2f} to {clip.end:.2f} s, {clip.frames} frames, {clip.reasons[0]}"
            )
