"""STATE/scrub.json: the last scrub of a volume, how far it is, and what it found."""

import json
from pathlib import Path

from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, read_object
from fusejournal.errors import FusejournalError
from fusejournal.node.volume_status import ScrubStatus

_FORMAT = 1
_FILE = "scrub.json"


def load_scrub(state_dir: Path) -> ScrubStatus | None:
    """Returns the last scrub; None where there was none, or its record cannot be read, which costs
    no more than that the next begins anew."""
    try:
        raw = read_object(state_dir / _FILE)
        if raw["format"] == _FORMAT:
            return checked(ScrubStatus.from_json(raw))
    except (FileNotFoundError, FusejournalError, *UNREADABLE_JSON):
        pass
    return None


def save_scrub(state_dir: Path, scrub: ScrubStatus) -> None:
    """Writes down how far a scrub is. Raises OSError."""
    content = json.dumps({"format": _FORMAT, **scrub.to_json()}, indent=1).encode()
    write_atomically("scrub.record", state_dir / _FILE, content, Outlives.PROCESS)
