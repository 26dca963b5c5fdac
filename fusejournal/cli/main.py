"""The command itself: the group, and what every command's errors end as."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from fusejournal.cli import text
from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError, PrivilegeError

_INTERRUPTED = 130
_STEPS_MAX = 12_000


_COMMANDS = {
    "mount": "mount:mount",
    "umount": "umount:umount",
    "restart": "restart:restart",
    "export": "export:export",
    "status": "status:status",
    "peer": "peer:peer",
    "pair": "pair:pair",
    "handoff": "handoff:handoff_command",
    "promote": "promote:promote_command",
    "demote": "demote:demote_command",
    "rejoin": "rejoin:rejoin",
    "branch": "branch:branch",
    "log": "log:log",
    "show": "show:show",
    "history": "history:history",
    "diff": "diff:diff",
    "mark": "mark:mark",
    "hook": "hook:hook",
    "version": "version:version",
    "prune": "prune:prune",
    "replay": "replay:replay",
    "restore": "restore:restore_command",
    "scrub": "scrub:scrub",
    "undo": "undo:undo",
    "digest": "digest:digest",
    "journal": "journal:journal",
    "witness": "witness:witness",
    "agent": "agent:agent",
    "console": "console:console",
    "install": "install:install",
    "completion": "completion:completion",
    "mount-helper": "mount_helper:mount_helper",
}


_OF_JOURNAL = ("verify", "dump", "stats")
"""Commands of the group ``journal``, which are asked for without it."""


class _Commands(click.Group):
    """Loads only the command that is asked for: the others' libraries take their time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            ctx.fail(f"no such command {cmd_name!r}{_meant_by(cmd_name)}")
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"fusejournal.cli.{module}"), name)
        return command


def _meant_by(name: str) -> str:
    """Returns the command that may be meant by *name*, which is none, in words."""
    if name in _OF_JOURNAL:
        return f": 'fusejournal journal {name}'?"
    # Only here: it takes its time to load.
    from difflib import get_close_matches

    near = get_close_matches(name, [one for one in _COMMANDS if one != "mount-helper"], 1)
    return f": '{near[0]}'?" if near else "; --help lists them"


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="fusejournal", message="fusejournal %(version)s")
def cli() -> None:
    """Journal every change of a directory: mount a layer over it, see who did what, lose nothing.

    \b
    Examples:
      fusejournal mount /srv/data /srv/data    journal a directory in place
      fusejournal status                       all volumes, a line each
      fusejournal log srv-data -n 50           the newest 50 changes
      fusejournal history srv-data docs/a.txt  one file's life, removed or not
      fusejournal undo srv-data 4711-4720      what taking these back would do
      fusejournal version create srv-data      keep an image of the tree
      fusejournal restore srv-data docs/a.txt --to-time "1 hour ago" --target /tmp/back
      fusejournal pair srv-data                make a mirror known, or be one
      fusejournal export srv-data 192.168.1.0/24 --write
      fusejournal umount srv-data
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, that of the process or *arguments*; every failure is one line on stderr
    and an exit code."""
    failpoints.listen_to_environment()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal has not is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    # Paths are followed directory by directory, and trees are deep at times.
    sys.setrecursionlimit(_STEPS_MAX)
    try:
        code = cli.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        text.echo_lines(shown.getvalue(), err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        text.echo("fusejournal: interrupted", err=True)
        sys.exit(_INTERRUPTED)
    except FusejournalError as error:
        text.echo(f"fusejournal: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has had enough; nothing is left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        refused = isinstance(error, PermissionError)
        hint = " (try sudo)" if refused and os.geteuid() != 0 else ""
        text.echo(f"fusejournal: {where}{error.strerror or error}{hint}", err=True)
        sys.exit(PrivilegeError.exit_code if refused else 1)
    except Exception as error:
        if os.environ.get("FUSEJOURNAL_TRACEBACK"):
            raise
        text.echo(
            f"fusejournal: {type(error).__name__}: {error} "
            "(this is a bug; FUSEJOURNAL_TRACEBACK=1 shows where)",
            err=True,
        )
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
