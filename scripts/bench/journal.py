"""The journal alone: entries and bytes a second that one process appends and reads back."""

import argparse
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.operations import Operation, Setattr, Write
from fusejournal.types import SYSTEM_CALLER, Fid, Seq


def append(journal: Journal, count: int, operation: Operation, data: bytes) -> tuple[float, int]:
    """Append *count* entries and flush; seconds and bytes."""
    before = journal.total_bytes
    begun = time.perf_counter()
    for _ in range(count):
        journal.append(operation, SYSTEM_CALLER, journal.next_time(), lambda _: b"some/path", data)
    journal.sync()
    return time.perf_counter() - begun, journal.total_bytes - before


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="run journal",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--where", default="/dev/shm", help="directory to work in")
    parser.add_argument("--count", type=int, default=200_000, help="small entries")
    options = parser.parse_args()
    kinds: list[tuple[str, Operation, bytes, int]] = [
        ("setattr", Setattr(Fid(7), 0o644, None, None, None, None), b"", options.count),
        ("write 4 KiB", Write(Fid(7), 0, None), b"x" * 4096, options.count // 4),
        ("write 1 MiB", Write(Fid(7), 0, None), b"x" * (1 << 20), options.count // 400),
    ]
    print(f"{'':14}{'append':>12}{'':9}{'':>10}{'':7}{'read back':>12}")
    for label, operation, data, count in kinds:
        with tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as name:
            journal = Journal.create(Path(name), uuid4(), JournalOptions())
            seconds, size = append(journal, count, operation, data)
            begun = time.perf_counter()
            assert sum(1 for _ in journal.reader.read(Seq(1), Seq(count + 1))) == count
            reading = time.perf_counter() - begun
            journal.close()
        print(
            f"{label:14}{count / seconds:12,.0f} entry/s{size / seconds / (1 << 20):10,.0f} MiB/s"
            f" {count / reading:12,.0f} entry/s{size / reading / (1 << 20):10,.0f} MiB/s"
        )


if __name__ == "__main__":
    main()
