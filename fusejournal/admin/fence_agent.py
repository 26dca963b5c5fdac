"""Turns an old primary off by a fence agent: one of the programs of that name (fence_ipmilan,
fence_apc ...) that ClusterLabs' fence-agents have for power switches, management boards and
hypervisors.

How each peer is turned off stands in a file of its own, PEER.conf, which is root's alone, because
it has passwords::

    agent = fence_ipmilan
    ip = 10.0.0.12
    username = admin
    password = ...

The agent gets all but the first on its standard input, with ``action=off``; then, until it says
that the power is off, with ``action=status``. That it did as it was asked is not enough.

Source: the FenceAgentAPI page of ClusterLabs: options on the standard input, a line each; status 2
of ``action=status`` is off, 0 is on."""

import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from fusejournal.disk.process import WORKING_DIRECTORY
from fusejournal.errors import FusejournalError, UsageError

OPTIONS_DIRECTORY = Path("/etc/fusejournal/fence")

_PEER = re.compile(r"[0-9A-Za-z_][0-9A-Za-z._-]{0,200}")
_LINE = re.compile(r"([A-Za-z_][0-9A-Za-z_-]*)[ \t]*=[ \t]*(.*)")
_OFF = 2
_POLL_SECONDS = 0.5


def read_options(peer: str, directory: Path = OPTIONS_DIRECTORY) -> dict[str, str]:
    """Returns the options by which *peer* is turned off, the agent's name among them. Raises
    UsageError."""
    if not _PEER.fullmatch(peer):
        raise UsageError(
            f"{peer!r} is no peer that could be turned off" if peer
            else "which peer was the primary is not known, and so not which to turn off"
        )  # fmt: skip
    path = directory / f"{peer}.conf"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}: how {peer} is turned off stands there"
        ) from None
    with open(fd, encoding="utf-8", errors="surrogateescape") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o077:
            raise UsageError(f"{path} must be a file that is root's alone: chmod 600")
        lines = file.read().splitlines()
    options = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise UsageError(f"{path} line {number} is not as NAME = VALUE")
        options[match[1]] = match[2]
    if not options.get("agent"):
        raise UsageError(f"{path} names no agent: agent = fence_ipmilan, for example")
    return options


def turn_off(peer: str, options: Mapping[str, str], timeout_seconds: float) -> None:
    """Returns when the agent among *options* has turned *peer* off and says that it is. Raises
    FusejournalError where it is not off within *timeout_seconds*."""
    deadline = time.monotonic() + timeout_seconds
    code, said = _call(options, "off", deadline)
    if code:
        raise FusejournalError(f"{peer} was not turned off: {_described(options, code, said)}")
    while True:
        code, said = _call(options, "status", deadline)
        if code == _OFF:
            return
        if time.monotonic() + _POLL_SECONDS > deadline:
            state = "is still on" if code == 0 else "is not known to be off"
            raise FusejournalError(f"{peer} {state}: {_described(options, code, said)}")
        time.sleep(_POLL_SECONDS)


def _described(options: Mapping[str, str], code: int, said: str) -> str:
    return f"{options['agent']} ended with status {code}" + (f": {said}" if said else "")


def _call(options: Mapping[str, str], action: str, deadline: float) -> tuple[int, str]:
    """Returns the agent's status and the last line that it printed."""
    agent = options["agent"]
    program = shutil.which(agent, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise FusejournalError(f"there is no {agent}: apt install fence-agents")
    told = {name: value for name, value in options.items() if name not in ("agent", "action")}
    lines = "".join(f"{name}={value}\n" for name, value in (told | {"action": action}).items())
    try:
        done = subprocess.run(
            [program],
            input=os.fsencode(lines),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=max(0.1, deadline - time.monotonic()),
            check=False,
            cwd=WORKING_DIRECTORY,
        )
    except subprocess.TimeoutExpired:
        raise FusejournalError(f"{agent} has not ended in time with action={action}") from None
    except OSError as error:
        raise FusejournalError(f"{program}: {error.strerror}") from None
    words = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return done.returncode, words[-1] if words else ""
