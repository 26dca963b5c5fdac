"""``fusejournal install``."""

from pathlib import Path

import click

from fusejournal.admin.install import install_files
from fusejournal.cli import text


@click.command(short_help="Set systemd and fstab up for volumes.")
@click.option("--write", is_flag=True, help="Install the files instead of printing them.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("/"),
    help="Install below this directory, for a package or an image.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the paths, and changes.")
def install(write: bool, root: Path, as_json: bool) -> None:
    """Print the systemd units that mount a volume at boot and run the agent and the console, and a
    helper for 'mount -t fusejournal', or write them to where they belong.

    The files name this very program: it must lie where only root can write.

    With the first unit, 'systemctl enable --now fusejournal@NAME' mounts the volume NAME, again if
    its layer should die, and before the NFS server starts. With the helper, fstab can have a line
    such as '/srv/data /srv/data fusejournal name=data,nosuid,nofail 0 0'. A volume needs one of
    them. The others: 'systemctl enable --now fusejournal-agent fusejournal-console'.

    \b
    Examples:
      fusejournal install
      fusejournal install --write
      fusejournal install --write --root debian/fusejournal --json
    """
    found = install_files(root, write=write, warn=_warn)
    if as_json:
        text.echo_json(found.to_json())
    elif not write:
        parts = (f"# ---- {file.path}\n{file.content}" for file, _ in found.files)
        text.echo_lines("\n".join(parts))
    else:
        for file, differs in found.files:
            text.echo(f"{file.path}: {'written' if differs else 'was up to date'}")
        if found.reloaded:
            text.echo("systemd: has read it")
        if found.next_step is not None:
            text.echo(f"next: {found.next_step}")


def _warn(words: str) -> None:
    text.echo(f"fusejournal: warning: {words}", err=True)
