"""The command itself: what is no command."""

import pytest
from click.testing import CliRunner

from fusejournal.cli.main import cli
from fusejournal.kinds import Kind


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("verify", ": 'fusejournal journal verify'?"),
        ("stats", ": 'fusejournal journal stats'?"),
        ("stauts", ": 'status'?"),
        ("xyzzy", "; --help lists them"),
    ],
)
def test_what_is_no_command_names_the_one_that_is_meant(typed: str, meant: str) -> None:
    done = CliRunner().invoke(cli, [typed])
    assert done.exit_code == 2
    assert done.output.splitlines()[-1] == f"Error: no such command {typed!r}{meant}"


@pytest.mark.parametrize("command", ["log", "undo", "replay"])
def test_the_help_names_the_operations(command: str) -> None:
    shown = CliRunner().invoke(cli, [command, "--help"]).output
    named = " ".join(shown.partition("Only these operations: ")[2].partition(".")[0].split())
    assert named.split(", ") == [kind.name.lower() for kind in Kind]


def test_the_help_has_an_example_of_each_way_back() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output
    for command in ("undo", "restore", "pair"):
        assert f"  fusejournal {command} srv-data" in shown
