"""The audit: who did what on the page, a line of JSON each, on the disk before it is done."""

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from fusejournal.disk import calls
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import parse_object

_TAIL_BYTES: Final = 1 << 20
_TEXT_MAX: Final = 2000


class Audit:
    """The audit in one file, which only grows. Blocks; any thread may call it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, user: str, host: str, what: str, **details: Any) -> None:
        """Writes a line. Raises OSError: then it must not be done."""
        line = {
            "time_ns": time.time_ns(), "user": user[:_TEXT_MAX], "host": host, "what": what,
            **details,
        }  # fmt: skip
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            # What a crash or a full disk has left of a line ends here.
            begin = b"" if not size or os.pread(fd, 1, size - 1) == b"\n" else b"\n"
            text = begin + json.dumps(line).encode() + b"\n"
            calls.write_all("console.audit.write", fd, text)
            calls.fdatasync("console.audit.sync", fd)
        finally:
            os.close(fd)

    def newest(self, count: int) -> list[dict[str, Any]]:
        """Returns the newest lines, the newest first. Raises OSError."""
        try:
            with open(self._path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read().splitlines()[size > _TAIL_BYTES :]
        except FileNotFoundError:
            return []
        found = []
        for line in reversed(lines):
            try:
                found.append(parse_object(line))
            except UNREADABLE_JSON:
                continue  # half a line, of a system that crashed
            if len(found) == count:
                break
        return found
