"""`python -m video` is the `video` command."""

from video.cli import main

if __name__ == "__main__":
    main()
