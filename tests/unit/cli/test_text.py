"""Output for people is printable, a line a call; and there is one way out."""

import ast
import logging
import os
import socket
import sys
from pathlib import Path

import pytest

import fusejournal.cli
from fusejournal.cli import text
from fusejournal.cli.reporters import LineFormatter, sd_notify

_ODD = os.fsdecode(b"\x1b[2J\nx\xff\xc2\x9b\r")
_SHOWN = "\\x1b[2J\\nx\\xff\\x9b\\r"


def test_a_call_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    text.echo(f"a {_ODD} b")
    text.echo(f"a {_ODD} b", err=True, fg="red")
    assert capsys.readouterr() == (f"a {_SHOWN} b\n", f"a {_SHOWN} b\n")


def test_colours_of_ours_stay() -> None:
    from click import style

    assert text.styled(style("word", "red") + _ODD) == style("word", "red") + _SHOWN


def test_a_log_record_is_a_line() -> None:
    formatter = LineFormatter("%(levelname)s: %(message)s")
    record = logging.LogRecord("x", logging.WARNING, "", 1, "of %s", (_ODD,), None)
    assert formatter.format(record) == f"WARNING: of {_SHOWN}"
    try:
        raise ValueError(_ODD)
    except ValueError:
        record.exc_info = sys.exc_info()
    assert all(line.isprintable() for line in formatter.format(record).split("\n"))


def test_a_name_is_no_message_to_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        sd_notify("STATUS=a name\nMAINPID=1")
        assert listening.recv(1000) == b"STATUS=a name\\nMAINPID=1"


def test_nothing_is_printed_in_another_way() -> None:
    for path in Path(fusejournal.cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and path.name != "text.py":
                assert ast.unparse(node.func) not in ("print", "click.echo", "click.secho"), path
