"""Keeps the copy of the server's NFS clients in a primary's volume (client_records.py): a process
beside the layer, because it writes through the mount as any user does.

    python -m fusejournal.nfs.client_watch MOUNTPOINT VOLUME REIGN TOKEN

It goes on as long as TOKEN stands in /run/fusejournal/VOLUME.nfs-clients, and the volume is mounted
and takes changes, and looks twice a second. A client that is lost with the server before that, and
before the mirror has the entry, opens its files anew, but without its locks."""

import errno
import logging
import os
import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from fusejournal.disk.process import WORKING_DIRECTORY, python_module
from fusejournal.errors import ExportError
from fusejournal.nfs import client_records

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
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
    root = Path(os.environ.get("FUSEJOURNAL_RUN_ROOT", "/run/fusejournal"))
    return root / f"{name}.nfs-clients"


def watch(mountpoint: Path, name: str, reign: str, token: str) -> None:
    """Keep the copy, until the volume is no longer this server's to change."""
    device = os.stat(mountpoint).st_dev
    kept: tuple[object, ...] | None = None
    while _is_wanted(name, token):
        try:
            if os.stat(mountpoint).st_dev != device:
                return
            # Looked at before it is read: what comes meanwhile is read the next time.
            stamp = client_records.stamp()
            if stamp != kept:
                client_records.save(mountpoint, client_records.of_server(reign, name))
                kept = stamp
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
