"""Turning a peer off by a fence agent: a script that answers as fence-agents' do, with a power
switch that is a file."""

import os
from pathlib import Path

import pytest

from fusejournal.admin.fence_agent import read_options, turn_off
from fusejournal.errors import FusejournalError, UsageError

pytestmark = pytest.mark.mount  # whose files are root's

_AGENT = """#!/bin/sh
while read line; do
  echo "$line" >>{seen}
  case $line in action=*) action=${{line#*=}} ;; esac
done
case $action in
  off) {off} ;;
  status) test -e {power} && {{ echo "Status: ON"; exit 0; }}; echo "Status: OFF"; exit 2 ;;
esac
"""


@pytest.fixture
def power(tmp_path: Path) -> Path:
    """A switch that is on."""
    path = tmp_path / "power"
    path.touch()
    return path


def agent(tmp_path: Path, off: str = "rm -f {power}") -> str:
    path = tmp_path / "fence_file"
    places = {"seen": tmp_path / "seen", "power": tmp_path / "power"}
    path.write_text(_AGENT.format(off=off.format(**places), **places))
    path.chmod(0o755)
    return str(path)


def options(tmp_path: Path, text: str, mode: int = 0o600) -> dict[str, str]:
    path = tmp_path / "east.conf"
    path.write_text(text)
    path.chmod(mode)
    return read_options("east", tmp_path)


def test_a_peer_is_turned_off(tmp_path: Path, power: Path) -> None:
    text = f"# who\nagent = {agent(tmp_path)}\n\nip=10.0.0.12\npassword = a = b # c\naction = on\n"
    turn_off("east", options(tmp_path, text), 10)
    assert not power.exists()
    first, second = (tmp_path / "seen").read_text().split("action=off\n")
    assert first == "ip=10.0.0.12\npassword=a = b # c\n"
    assert second == f"{first}action=status\n"


@pytest.mark.parametrize(
    ("off", "seconds", "words"),
    [
        ("echo no route; exit 1", 10, "east was not turned off: .* status 1: no route"),
        ("exit 0", 1.5, "east is still on: .* status 0: Status: ON"),
        ("exec sleep 60", 0.7, "has not ended in time with action=off"),
    ],
)
def test_one_that_is_not_off_is_a_failure(
    tmp_path: Path, power: Path, off: str, seconds: float, words: str
) -> None:
    with pytest.raises(FusejournalError, match=words):
        turn_off("east", {"agent": agent(tmp_path, off)}, seconds)
    assert power.exists()


def test_an_agent_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(FusejournalError, match="apt install fence-agents"):
        turn_off("east", {"agent": "fence_of_nowhere"}, 1)
    (tmp_path / "bad").write_text("no program")
    (tmp_path / "bad").chmod(0o755)
    with pytest.raises(FusejournalError, match="Exec format error"):
        turn_off("east", {"agent": str(tmp_path / "bad")}, 1)


@pytest.mark.parametrize("peer", ["", "../east", ".", "a/b", "-x"])
def test_what_is_no_peer(tmp_path: Path, peer: str) -> None:
    with pytest.raises(UsageError, match="turn"):
        read_options(peer, tmp_path)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("agent = x\n", 0o640, "root's alone: chmod 600"),
        ("agent = x\nwhat\n", 0o600, "line 2 is not as NAME = VALUE"),
        ("ip = x\n", 0o600, "names no agent"),
    ],
)
def test_options_that_are_none(tmp_path: Path, text: str, mode: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        options(tmp_path, text, mode)


def test_options_that_are_not_there_or_anothers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"east\.conf: No such file .* how east is turned off"):
        read_options("east", tmp_path)
    options(tmp_path, "agent = x\n")
    os.chown(tmp_path / "east.conf", 1000, 1000)
    with pytest.raises(UsageError, match="root's alone"):
        read_options("east", tmp_path)
