"""STATE/versions.json: the last look at a volume's versions and their store, which is not asked
each time that the status is.

Written by the process that works on versions for the layer (admin/keep_versions.py), and where a
command makes one. Its loss costs a look at the store."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fusejournal.control.reply import Reply
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, read_object
from fusejournal.errors import FusejournalError
from fusejournal.node.volume_status import VersionStatus

if TYPE_CHECKING:
    from fusejournal.versions.manifest import Version

_FORMAT = 1
_FILE = "versions.json"
_STORE_FILE = "store.json"
"""The file of versions/place.py, which loads what is not needed to show it."""


@dataclass(frozen=True, kw_only=True)
class WorkOutcome(Reply):
    """The end of one work on versions, as the process that does it reports it to the layer."""

    NESTED: ClassVar[Mapping[str, type[Reply]]] = {"status": VersionStatus}

    status: VersionStatus
    done: bool
    again_in_seconds: float | None = None
    """The time until the same work is due, where that is not a whole period."""


def load_version_status(state_dir: Path) -> VersionStatus | None:
    """Returns what is known of the versions of the volume with this state directory, and of the
    store that it has now; None where it has none."""
    try:
        place = read_object(state_dir / _STORE_FILE)
        unknown = checked(VersionStatus(store=place["store"], store_id=place["id"]))
    except (OSError, *UNREADABLE_JSON):
        return None
    try:
        raw = read_object(state_dir / _FILE)
        if raw["format"] != _FORMAT:
            return unknown
        found = checked(VersionStatus.from_json(raw))
    except (OSError, FusejournalError, *UNREADABLE_JSON):
        return unknown
    # A store may have been moved; one that was begun anew is another.
    return replace(found, store=unknown.store) if found.store_id == unknown.store_id else unknown


def note_made(state_dir: Path, version: "Version", *, is_new: bool) -> None:
    """Writes down that *version* is there, as far as the disk has room, which is no condition of
    it."""
    known = load_version_status(state_dir)
    if known is None or (known.last_seq or 0) > version.seq:
        return
    now = time.time()
    is_first = known.first_seq is None
    found = replace(
        known,
        reachable=True,
        reachable_since=known.reachable_since if known.reachable else now,
        looked=now,
        count=known.count + is_new,
        first_seq=version.seq if is_first else known.first_seq,
        first_time_ns=version.time_ns if is_first else known.first_time_ns,
        last_seq=version.seq,
        last_time_ns=version.time_ns,
        last_name=version.name,
        last_key=version.key,
        last_made=version.made_ns / 1e9,
        last_made_by=version.made_by,
    )
    with suppress(OSError):
        save_version_status(state_dir, found)


def save_version_status(state_dir: Path, status: VersionStatus) -> None:
    """Writes down what is known. Raises OSError."""
    content = json.dumps({"format": _FORMAT, **status.to_json()}, indent=1).encode()
    write_atomically("version.record", state_dir / _FILE, content, Outlives.PROCESS)
