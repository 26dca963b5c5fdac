"""Command lines as shells take them."""

import subprocess

from fusejournal.agent.command_lines import command_line


def test_command_lines_mean_what_they_show() -> None:
    odd = ("it's", "a b", "bytes\udcff\x1b[31m'\\", "-x")
    shown = command_line(*odd, options=[("--op", None), ("--uid", 7), ("--apply", True)])
    script = shown.replace("fusejournal", "printf '%s\\0'", 1)
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    words = [one.encode("utf-8", "surrogateescape") for one in (*odd, "--uid", "7", "--apply")]
    assert done.stdout.split(b"\0")[:-1] == words
