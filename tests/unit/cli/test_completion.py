"""The scripts that shells complete with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner

from fusejournal.cli.main import cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_clicks(shell: str) -> None:
    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(cli, {}, "fusejournal", "_FUSEJOURNAL_COMPLETE").source()
    printed = CliRunner().invoke(cli, ["completion", shell]).output
    assert printed.rstrip("\n") == source.rstrip("\n")


def test_what_it_asks_for_is_answered() -> None:
    program = Path(sys.executable).with_name("fusejournal")

    def complete(words: str) -> list[str]:
        environment = {
            **os.environ,
            "_FUSEJOURNAL_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        done = subprocess.run(
            [program], env=environment, capture_output=True, text=True, check=True
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("fusejournal mo") == ["mount"]
    assert "--on-conflict" in complete("fusejournal undo --o")
    assert complete("fusejournal peer pau") == ["pause"]
