"""The console's directory, ``.console`` in the root of volumes' states: no volume's name begins
with a dot.

::

    .console/identity/     its key and certificate (wire/identity.py)
    .console/agents.json   the agents that it is paired with
    .console/users.json    who may log in, with which role
    .console/audit.jsonl   who did what
    .console/tokens.json   the hashes of API tokens, and what each may
    .console/alerts.json   the alerts there are: since when, acknowledged and silenced by whom
    .console/told.json     which of them were told by which channel
    .console/seen.json     what each agent answered last, and when
    .console/lock          locked by whatever changes the agents, users or tokens"""

import os
import socket
from pathlib import Path

from fusejournal.address import default_node_name
from fusejournal.disk.files import make_directories
from fusejournal.node.registry import state_root
from fusejournal.wire.identity import Identity, load_or_make


def console_directory() -> Path:
    """Returns the console's directory, which is made. Raises OSError."""
    directory = state_root() / ".console"
    make_directories("console.directory.make", directory)
    os.chmod(directory, 0o700)
    return directory


def console_name() -> str:
    """Returns the name that the console has for agents."""
    return default_node_name(f"{socket.gethostname().partition('.')[0]}-console")


def console_identity(directory: Path) -> Identity:
    """Returns the console's key and certificate, made where there are none. Raises
    FusejournalError, OSError."""
    return load_or_make(directory / "identity", console_name())
