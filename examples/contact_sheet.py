"""One picture of what a video shows, its most telling picture alone, and where its highlights are.

python examples/contact_sheet.py [talk.mp4]
"""

import sys
from pathlib import Path

from video.media.highlights import find_highlights
from video.media.sample import write_sample
from video.media.stills import contact_sheet, thumbnail

source = sys.argv[1] if sys.argv[1:] else write_sample(Path("samples"), seconds=10)

print(contact_sheet(source, "sheet.jpg", count=8, columns=4, title=Path(source).name))
print(thumbnail(source, "thumbnail.jpg", width=480))
for one in find_highlights(source, count=3, min_length=2, max_length=5):
    print(f"{one.start:.2f} to {one.end:.2f} s, score {one.score:.2f}: {', '.join(one.reasons)}")
