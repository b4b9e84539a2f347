"""What processors share that make files of videos: a request has a source and an output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from video.errors import VideoError
from video.processors.base import Processor, Request, Response
from video.sources.base import is_url, resolve


class FileProcessor(Processor[Request, Response]):
    """Its jobs have a `source` and an `output_dir` as well, and return lists of `made`."""

    made: ClassVar[type[BaseModel]]
    keep_names: ClassVar[bool] = True
    """Write down in the output folder whose files have which name."""

    def check(self, request: Any) -> None:
        found = resolve(request.source)
        if not is_url(request.source):
            found.fetch(request.source, request.output_dir)

    def plain(self, value: list[Any]) -> list[Any]:
        return [one.model_dump(mode="json") for one in value]

    def value(self, plain: list[Any]) -> list[Any]:
        return [self.made.model_validate(one) for one in plain]

    def resource(self, job: Any) -> str:
        """The host that its source comes from."""
        return (urlsplit(job.source).hostname or "") if is_url(job.source) else ""

    def inputs(self, job: Any) -> list[Path]:
        if is_url(job.source):
            return []
        try:
            return [resolve(job.source).fetch(job.source, job.output_dir).path]
        except VideoError:  # the job fails with that when it runs
            return []
