"""Keeps the copy of the server's NFS clients in a primary's volume (client_records.py): a process
beside the layer, because it writes through the mount as any user does.

    python -m fusejournal.nfs.client_watch MOUNTPOINT VOLUME REIGN TOKEN

It goes on as long as TOKEN stands in /run/fusejournal/VOLUME.nfs-clients, and the volume is mounted
and takes changes, and looks twice a second. A client that is lost with the server before that, and
before the mirror has the entry, opens its files anew, but without its locks.

A change of connections alone is written less often: only once there is a new one, after a pause
that doubles from PAUSE_SECONDS to PAUSE_SECONDS_MAX while new ones keep coming, because any host
that reaches nfsd can make some, and each write is an entry. One that
the copy lacks costs its client a minute's wait where the server is lost."""

import errno
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fusejournal.disk.boot import run_directory
from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import ExportError
from fusejournal.nfs import client_records
from fusejournal.nfs.connections import ClientConnection, established

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
PAUSE_SECONDS = 2.0
"""The first pause between two writes that new connections alone cause."""
PAUSE_SECONDS_MAX = 600.0
"""The longest such pause."""
_OVER = (errno.EROFS, errno.ENOTCONN, errno.ENOENT, errno.ENODEV)


def begin(mountpoint: Path, name: str, reign: str) -> None:
    """Start the process for the volume *name*; one that runs ends. Raises OSError."""
    path = _token_file(name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    path.write_text(token)
    module = python_module("fusejournal.nfs.client_watch", str(mountpoint), name, reign, token)
    subprocess.run(
        # The caller ends before it.
        ["setsid", "--fork", *module],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=WORKING_DIRECTORY,
        check=False,
    )


def end(name: str) -> None:
    """Have the process of the volume *name* end, soon. Raises OSError."""
    _token_file(name).unlink(missing_ok=True)


def _token_file(name: str) -> Path:
    return run_directory() / f"{name}.nfs-clients"


class NewConnections:
    """Decides when connections that the copy lacks are to be written."""

    def __init__(self) -> None:
        self._kept: frozenset[ClientConnection] = frozenset()
        self._pause_seconds = PAUSE_SECONDS
        self._quiet_until = 0.0

    def are_due(self, now: float, found: Iterable[ClientConnection]) -> bool:
        """True if one of *found* is to be written at *now*, a monotonic time. (Those that are gone
        do no harm.)"""
        is_quiet = now < self._quiet_until
        if self._kept.issuperset(found):
            if not is_quiet:
                self._pause_seconds = PAUSE_SECONDS
            return False
        return not is_quiet

    def note_kept(self, now: float, kept: Iterable[ClientConnection]) -> None:
        """Take down that the copy has *kept* since *now*."""
        lacked = not self._kept.issuperset(kept)
        self._kept = frozenset(kept)
        if lacked:
            self._quiet_until = now + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, PAUSE_SECONDS_MAX)


def watch(mountpoint: Path, name: str, reign: str, token: str) -> None:
    """Keep the copy, until the volume is no longer this server's to change."""
    device = os.stat(mountpoint).st_dev
    kept: tuple[object, ...] | None = None
    new = NewConnections()
    while _is_wanted(name, token):
        try:
            if os.stat(mountpoint).st_dev != device:
                return
            # Looked at before it is read: what comes meanwhile is read the next time.
            stamp, now = client_records.stamp(), time.monotonic()
            if stamp != kept or new.are_due(now, established()):
                records = client_records.of_server(reign, name)
                client_records.save(mountpoint, records)
                kept = stamp
                new.note_kept(now, records.connections)
        except OSError as error:
            if error.errno in _OVER:
                return
        except ExportError as error:
            log.warning("%s", error)
        time.sleep(POLL_SECONDS)


def _is_wanted(name: str, token: str) -> bool:
    with suppress(OSError, ValueError):
        return _token_file(name).read_text() == token
    return False


def main() -> None:
    """The process."""
    mountpoint, name, reign, token = sys.argv[1:]
    watch(Path(mountpoint), name, reign, token)


if __name__ == "__main__":
    main()
