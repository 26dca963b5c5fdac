"""Command lines as shells take them."""

import shlex
import subprocess

from fusejournal.agent.command_lines import command_line
from fusejournal.cli.restore import restore_command


def test_command_lines_mean_what_they_show() -> None:
    odd = ("it's", "a b", "bytes\udcff\x1b[31m'\\")
    shown = command_line(*odd, options=[("--op", None), ("--uid", 7), ("--apply", True)])
    script = shown.replace("fusejournal", "printf '%s\\0'", 1)
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    words = [one.encode("utf-8", "surrogateescape") for one in (*odd, "--uid", "7", "--apply")]
    assert done.stdout.split(b"\0")[:-1] == words


def test_no_path_is_taken_for_an_option() -> None:
    shown = command_line("restore", "data", "--target=/etc", options=[("--from-journal", True)])
    words = shlex.split(shown)
    assert words[:2] == ["fusejournal", "restore"]
    with restore_command.make_context("restore", words[2:]) as context:
        given = [context.params[one] for one in ("volume", "path", "target", "from_journal")]
    assert given == ["data", "--target=/etc", None, True]
