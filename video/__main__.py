"""The `video` command, also as `python -m video`. Little is imported here, so that Ctrl-C is heard soon."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Entry point of the console script."""
    # What comes next takes a fifth of a second and leaves nothing to clean up; some of it eats exceptions.
    signal.signal(signal.SIGINT, _end)
    from video import cli

    cli.main()


def _end(*_: object) -> None:
    try:
        os.write(2, b"stopped\n")
    finally:  # it may be closed
        os._exit(130)


if __name__ == "__main__":
    main()
