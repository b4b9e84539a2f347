"""`video completion`: what a shell needs to complete our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

EXAMPLES = """\b
Examples:
  video completion bash >> ~/.bashrc
  video completion zsh >> ~/.zshrc
  video completion fish > ~/.config/fish/completions/video.fish
"""


@click.command(epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three shells of the choice"
    click.echo(kind(ctx.find_root().command, {}, "video", "_VIDEO_COMPLETE").source())
