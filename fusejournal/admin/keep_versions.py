"""The process that does one work on a volume's versions for its layer (node/version_schedule.py):
``python -P -m fusejournal.admin.keep_versions make|prune|look STATE_DIR CONFIG``; an empty CONFIG
where the layer's is of no file.

- *make* has a version made, unless another node that keeps its versions in the same store has made
  one within the period: two nodes with one schedule make one version a period, and where one is
  lost the other goes on a quarter of a period later.
- *prune* does what ``fusejournal prune`` does. What another node has collected meanwhile is not
  collected again.
- *look* reads which versions there are, and so whether the store can be had.

Prints its outcome, a WorkOutcome as JSON, when it ends. It has the lowest priority, of the
processor and so of the disk, and ends where the layer does: at the end of its standard input.
Killed at any instruction, it leaves what a killed command would.

Source: nice(2); ionice(1), on how the one priority follows from the other."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from fusejournal.address import node_name
from fusejournal.admin.prune import Pruning
from fusejournal.admin.versions import ListedVersions, VolumeVersions
from fusejournal.config import VersionsConfig, load_config
from fusejournal.disk.process import lower_priority
from fusejournal.errors import FusejournalError
from fusejournal.node.version_record import (
    WorkOutcome,
    load_version_status,
    save_version_status,
)
from fusejournal.node.volume_status import VersionStatus
from fusejournal.objects.store import StoreError
from fusejournal.versions.creators import newest_plan, open_plan

_DEFERENCE: Final = 0.25
"""The part of a period by which a node lets the one go first that made the newest version."""


def _no_progress(_: int, __: int | None) -> None:
    pass


class VersionKeeping:
    """The works on the versions of the volume in *state_dir*, with the configuration in *config*,
    or by the defaults. *clock* returns the time, in seconds since 1970."""

    def __init__(
        self,
        state_dir: Path,
        config: Path | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises UsageError where the volume has no store."""
        self._state_dir = state_dir
        self._config_file = config
        self._clock = clock
        self._again_in_seconds: float | None = None
        known = load_version_status(state_dir)
        if known is None:
            raise FusejournalError(f"{state_dir}: the volume has no store of versions")
        self._known = known

    def do(self, work: str) -> WorkOutcome:
        """Does *work*, and keeps what is known by then for status."""
        try:
            {"make": self._make, "prune": self._prune, "look": self._look}[work]()
        except (FusejournalError, OSError, MemoryError) as error:
            self._failed(error)
            done = False
        else:
            self._known = replace(self._known, error=None, failures=0)
            done = True
        with suppress(OSError):  # a full disk: the layer keeps what it is told
            save_version_status(self._state_dir, self._known)
        return WorkOutcome(status=self._known, done=done, again_in_seconds=self._again_in_seconds)

    def _failed(self, error: Exception) -> None:
        known = self._known
        self._known = replace(
            known, error=str(error) or type(error).__name__, failures=known.failures + 1
        )

    def _versions(self) -> VolumeVersions:
        return VolumeVersions(f"{self._state_dir}/", config=self._config_file)

    # -- works -------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._list(self._versions())

    def _list(self, versions: VolumeVersions) -> ListedVersions:
        """Reads which versions there are; raises StoreError where the store cannot be had."""
        now = self._clock()
        try:
            listed = versions.all()
        except StoreError:
            self._reached(now, reachable=False)
            raise
        self._reached(now, reachable=True)
        self._note(listed)
        return listed

    def _reached(self, now: float, *, reachable: bool) -> None:
        known = self._known
        since = known.reachable_since if known.reachable is reachable else now
        self._known = replace(known, reachable=reachable, reachable_since=since, looked=now)

    def _note(self, listed: ListedVersions) -> None:
        here = [one for one in listed.versions if one.history != "lost"]
        versions = sorted((one.version for one in here), key=lambda one: one.seq)
        found = replace(
            VersionStatus(store="", store_id=""),
            count=len(versions),
            protected=sum(one.is_protected for one in here),
            unreadable=len(listed.unreadable),
        )
        if versions:
            first, last = versions[0], versions[-1]
            found = replace(
                found,
                first_seq=first.seq,
                first_time_ns=first.time_ns,
                last_seq=last.seq,
                last_time_ns=last.time_ns,
                last_name=last.name,
                last_key=last.key,
                last_made=last.made_ns / 1e9,
                last_made_by=last.made_by,
            )
        known = self._known
        self._known = replace(
            found,
            store=known.store,
            store_id=known.store_id,
            reachable=known.reachable,
            reachable_since=known.reachable_since,
            looked=known.looked,
            error=known.error,
            failures=known.failures,
            made=known.made,
            judged_key=known.judged_key,
            pruned=known.pruned,
            freed_bytes=known.freed_bytes,
            held_by=known.held_by,
            waiting_for=known.waiting_for,
            plan=known.plan,
        )

    def _make(self) -> None:
        versions = self._versions()
        config = load_config(self._config_file).versions
        self._list(versions)
        if self._is_another_s(config, versions):
            return
        versions.create("", _no_progress)
        self._list(self._versions())
        known = self._known
        self._known = replace(known, made=self._clock(), judged_key=known.last_key)

    def _is_another_s(self, config: VersionsConfig, versions: VolumeVersions) -> bool:
        """Returns True if another node has made this period's version: one that was not there when
        this node's was due last, and is not older than the period. (No more than that is made of
        its clock.) Then this node's is due a quarter of a period after the other's next."""
        known = self._known
        made, every_seconds = known.last_made, config.every
        if every_seconds is None or made is None or known.last_key == known.judged_key:
            return False
        age_seconds = max(0.0, self._clock() - made)
        if known.last_made_by == node_name(versions.name) or age_seconds >= every_seconds:
            return False
        self._known = replace(known, made=made, judged_key=known.last_key)
        self._again_in_seconds = (1 + _DEFERENCE) * every_seconds - age_seconds
        return True

    def _prune(self) -> None:
        work = Pruning(f"{self._state_dir}/", self._config_file)
        versions = self._versions()
        self._list(versions)
        plan = work.plan()
        store = versions.store()
        number = newest_plan(store)
        # Another node has collected since, so that it would find little.
        is_collected = number > self._known.plan > 0 and open_plan(store) is None
        collected = work.carry_out(plan, _no_progress, collecting=not is_collected)
        self._list(self._versions())
        self._known = replace(
            self._known,
            pruned=self._clock(),
            freed_bytes=collected.removed_bytes + plan.journal.bytes,
            held_by=plan.journal.held_by,
            waiting_for=tuple(one.node for one in collected.waiting_for),
            plan=newest_plan(store),
        )


def _end_with_the_layer() -> None:
    os.read(0, 1)
    os._exit(1)


def _main(work: str, state_dir: str, config: str) -> None:
    lower_priority()
    threading.Thread(target=_end_with_the_layer, daemon=True).start()
    try:
        keeping = VersionKeeping(Path(state_dir), Path(config) if config else None)
    except FusejournalError as error:
        sys.exit(f"fusejournal: {error}")
    print(json.dumps(keeping.do(work).to_json()), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
