"""Five variants of a video that stay near it, and the plan of one list of transformations.

python examples/variants.py [talk.mp4]
"""

import sys
from pathlib import Path

from video import ConcurrentTransformationEngine, FFmpegTransformationService
from video.media.sample import write_sample


def main(path: str | Path) -> None:
    found = FFmpegTransformationService.create_multiple_variants_fast(
        path, "variants", num_variants=5, strategy="enhanced_metrics",
        progress_callback=lambda percent: print(f"{percent:.0f} %", end="\r", file=sys.stderr),
    )  # fmt: skip
    for one in found:
        if one["error"] is None:
            print(f"{one['output_path']}: SSIM {one['measures']['ssim']:.3f}")
        else:
            print(f"{one['variant_id']} failed: {one['error']}")
    if all(one["error"] is not None for one in found):
        sys.exit("no variant could be made")

    engine = ConcurrentTransformationEngine()
    print(engine.plan(path, [["vignette", "crop", "speed", "bass"]]))


if __name__ == "__main__":  # worker processes may import this file
    main(sys.argv[1] if sys.argv[1:] else write_sample(Path("samples"), seconds=5))
