"""The end of a job's process that found no room to keep its progress: ``end.json`` of the job's
directory, whose space is taken before the process begins, and which is written in place.

It is empty unless the last process ended so; then its state and words count, and the progress is
older."""

import json
import os
from pathlib import Path
from typing import Final, NamedTuple

from fusejournal.agent.job_states import JobState
from fusejournal.disk import calls
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import read_object

_BYTES: Final = 16 << 10
_WORDS_MAX: Final = 2500
"""Characters, of up to six bytes each as JSON."""


class JobEnd(NamedTuple):
    """The state in which a process left its job, and why."""

    state: JobState
    words: str


def make_room_for_end(directory: Path) -> None:
    """Takes the space of the job's end, and forgets that of a process before. Raises OSError."""
    _write(directory, b"{}")


def keep_end(directory: Path, end: JobEnd) -> None:
    """Keeps *end*, on a full disk too. Raises OSError."""
    raw = {"state": end.state.value, "words": end.words[:_WORDS_MAX]}
    _write(directory, json.dumps(raw).encode())


def kept_end(directory: Path) -> JobEnd | None:
    """Returns the end that the last process kept so; None where it kept none."""
    try:
        raw = read_object(directory / "end.json")
        return JobEnd(JobState(raw["state"]), str(raw["words"]))
    except (OSError, *UNREADABLE_JSON):
        return None


def _write(directory: Path, content: bytes) -> None:
    fd = os.open(directory / "end.json", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        calls.write_all("agent.end", fd, content.ljust(_BYTES), 0)
    finally:
        os.close(fd)
