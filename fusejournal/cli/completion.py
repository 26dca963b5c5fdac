"""``fusejournal completion``: what a shell needs to complete commands and options."""

import click
from click.shell_completion import get_completion_class

from fusejournal.cli import text

_VARIABLE = "_FUSEJOURNAL_COMPLETE"
"""The variable that click looks at, in a program called ``fusejournal``."""


@click.command(short_help="Print what a shell needs to complete commands.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that lets SHELL complete commands and options. The Debian package has them
    installed already.

    \b
    Examples:
      fusejournal completion bash >/usr/share/bash-completion/completions/fusejournal
      fusejournal completion zsh >/usr/share/zsh/vendor-completions/_fusejournal
      fusejournal completion fish >/usr/share/fish/vendor_completions.d/fusejournal.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    text.echo_lines(kind(ctx.find_root().command, {}, "fusejournal", _VARIABLE).source())
