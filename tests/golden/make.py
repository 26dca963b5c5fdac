"""Writes the golden files of the current format version: ``python -m tests.golden.make``.

Run once when a format version is made; the files of a version that was released never change."""

import json
import tempfile
from pathlib import Path
from unittest import mock

from fusejournal.journal.format import FORMAT_VERSION
from fusejournal.journal.segment import list_segments
from tests.support.entries import write_samples

HERE = Path(__file__).parent


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch("fusejournal.journal.clock.now_ns", return_value=1_700_000_000_000_000_000),
    ):
        journal = write_samples(Path(name))
        journal.close()
        (path,) = list_segments(Path(name))
        content = path.read_bytes()
    rows = [content[at : at + 32].hex() for at in range(0, len(content), 32)]
    target = HERE / f"journal-v{FORMAT_VERSION}.json"
    target.write_text(json.dumps({"segment": rows}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
