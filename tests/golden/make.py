"""Writes the golden files of the current format version: ``python -m tests.golden.make``.

Run once when a format version is made, or gets a field that its earlier readers pass over; the
files of a version that was released never change."""

import json
import tempfile
from pathlib import Path
from unittest import mock

from fusejournal.journal.format import FORMAT_VERSION
from fusejournal.journal.handle_key import HANDLE_KEY_BYTES, NO_HANDLE_KEY, HandleKey
from fusejournal.journal.segment import list_segments
from tests.support.entries import write_samples

HERE = Path(__file__).parent
HANDLE_KEY = HandleKey(range(HANDLE_KEY_BYTES))
"""The handle key of the golden journal that has one."""


def main() -> None:
    for suffix, handle_key in (("", NO_HANDLE_KEY), ("-handle-key", HANDLE_KEY)):
        content = _segment(handle_key)
        rows = [content[at : at + 32].hex() for at in range(0, len(content), 32)]
        target = HERE / f"journal-v{FORMAT_VERSION}{suffix}.json"
        target.write_text(json.dumps({"segment": rows}, indent=1) + "\n")
        print(target)


def _segment(handle_key: HandleKey) -> bytes:
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch("fusejournal.journal.clock.now_ns", return_value=1_700_000_000_000_000_000),
    ):
        write_samples(Path(name), handle_key=handle_key).close()
        (path,) = list_segments(Path(name))
        return path.read_bytes()


if __name__ == "__main__":
    main()
