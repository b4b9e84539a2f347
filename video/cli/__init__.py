"""The `video` command. One file a command; `common` holds what they share."""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module

import click

from video.cli.common import OUTPUT_EXIT, STOPPED_EXIT, USAGE_EXIT, fail, stop_on_signals
from video.errors import VideoError

COMMANDS = {
    "clips": "video.cli.clips:clips",
    "encode": "video.cli.encode:encode",
    "jobs": "video.cli.jobs:jobs",
    "demo": "video.cli.demo:demo",
    "probe": "video.cli.probe:probe",
    "compare": "video.cli.compare:compare",
    "sheet": "video.cli.sheet:sheet",
    "variants": "video.cli.variants:variants",
    "backends": "video.cli.backends:backends",
    "check-backend": "video.cli.check_backend:check_backend",
    "calibrate": "video.cli.calibrate:calibrate",
    "completion": "video.cli.completion:completion",
}


class _LazyGroup(click.Group):
    """Imports a command when it is asked for, so that `--help` and completion answer at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(
    cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="parallel-video", prog_name="video")
def cli() -> None:
    """Run batches of video jobs in parallel, and lose none of them.

    \b
    Examples:
      video demo                                   make sample videos and cut them
      video clips talk.mp4 --out clips             the three best clips of a video
      video clips films/ --count 5 --workers 4     of every video in a folder
      video encode talk.mov --ladder 720,360       the same video in two sizes
      video probe talk.mp4                         what a file holds
      video compare small.mp4 talk.mp4             how near one comes to the other
      video sheet talk.mp4                         one picture of what a video shows
      video variants talk.mp4 --count 5            versions that differ in many small ways
      video check-backend process                  whether an engine keeps its promises

    Exit codes: 0 all went well, 1 some items failed, 2 wrong usage, 130 stopped by Ctrl-C.
    """


def main() -> None:
    """Run the command that the program was started with, and exit; `video.__main__` begins there."""
    try:
        stop_on_signals()
        sys.exit(cli(standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        fail("stopped", STOPPED_EXIT)
    except VideoError as error:
        if "--debug" in sys.argv:
            raise
        fail(str(error), USAGE_EXIT)
    except BrokenPipeError:
        # Whoever read our output has had enough; what is still buffered must not raise again at exit.
        with contextlib.suppress(OSError):
            sys.stdout.close()
        sys.exit(1)
    except OSError as error:
        fail(f"the output cannot be written: {error.strerror}", OUTPUT_EXIT)
