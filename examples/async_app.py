"""Inside an async program: the event loop is never blocked, and batches can be as long as they like.

python examples/async_app.py [talk.mp4 ...]
"""

import asyncio
import sys
from pathlib import Path

from video import ParallelConfig, Runner, VideoClipProcessor
from video.media.sample import write_sample


async def fetch_title(name: str) -> str:
    await asyncio.sleep(0.05)  # a request to some service
    return name.title()


async def main(names: list[str]) -> None:
    with VideoClipProcessor() as processor, Runner(ParallelConfig(max_workers=100)) as runner:
        clips = asyncio.create_task(
            processor.process_batch_async([{"source": name, "count": 1} for name in names])
        )
        async for outcome in runner.astream(fetch_title, names):
            print("title:", outcome.value)
        for response in await clips:
            print("clips:", [str(clip.path) for clip in response.clips])


asyncio.run(main(sys.argv[1:] or [str(write_sample(Path("samples"), seconds=10))]))
