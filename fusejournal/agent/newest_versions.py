"""The newest version of each volume, asked of its store in the background: that may be far away, or
on a mount that hangs, and the overview does not wait for it.

One thread asks one store, and ends with the answer, so that none waits for another's. Until there
is a new answer the last one is shown."""

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

from fusejournal.admin.versions import VolumeVersions
from fusejournal.errors import FusejournalError
from fusejournal.node.state_dir import VolumeState

log = logging.getLogger(__name__)

_PERIOD_SECONDS: Final = 60.0
_STORE_SECONDS: Final = 10.0
"""The time after which a store is one that does not answer."""
_WAIT_SECONDS: Final = 1.0
"""The time that is waited for answers to what was just asked: most stores are near."""
_SILENT: Final = "its store does not answer"


class NewestVersions:
    """The newest versions of all volumes, as far as they are known. For one thread at a time."""

    def __init__(self) -> None:
        self._stores: dict[Path, _AskedStore] = {}

    def find(self, states: Iterable[VolumeState]) -> dict[Path, dict[str, Any]]:
        """Returns the newest version, and how many there are, by state directory, of the volumes
        that have a store: with ``error`` where it does not answer, or is not as it should be, and
        then with what it answered last, and when (``seen_ns``); with nothing where it has not
        answered yet."""
        states = [state for state in states if state.has_versions]
        self._stores = {
            state.directory: self._stores.get(state.directory) or _AskedStore() for state in states
        }
        begun = [
            one
            for one, state in zip(self._stores.values(), states, strict=True)
            if one.begin(state)
        ]
        deadline = time.monotonic() + _WAIT_SECONDS
        for one in begun:
            one.wait(deadline)
        return {directory: one.answer() for directory, one in self._stores.items()}


class _AskedStore:
    """A store, and what it answered last."""

    def __init__(self) -> None:
        self._begun = float("-inf")
        self._done = Event()
        self._done.set()
        self._found: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}
        """The last answer without an error, and when it came."""

    def begin(self, state: VolumeState) -> bool:
        """Begins to ask, if it is time; returns True then."""
        now = time.monotonic()
        if not self._done.is_set() or now < self._begun + _PERIOD_SECONDS:
            return False
        self._begun, self._done = now, Event()
        # A daemon: one that hangs does not keep the agent from its end.
        Thread(target=self._ask, args=(state,), name=f"store {state.name}", daemon=True).start()
        return True

    def wait(self, deadline: float) -> None:
        """Waits until it has answered, or until *deadline*."""
        self._done.wait(max(0.0, deadline - time.monotonic()))

    def answer(self) -> dict[str, Any]:
        """Returns the last answer."""
        if not self._done.is_set() and time.monotonic() > self._begun + _STORE_SECONDS:
            return {**self._seen, "error": _SILENT}
        return self._found

    def _ask(self, state: VolumeState) -> None:
        try:
            found = _newest_version(state)
        except Exception as error:  # whatever it is, it is this store's alone
            log.exception("%s: its store cannot be asked", state.name)
            found = {"error": f"it cannot be asked: {error!r}"}
        if "error" in found:
            self._found = {**self._seen, **found}
        else:
            self._found, self._seen = found, {**found, "seen_ns": time.time_ns()}
        self._done.set()


def _newest_version(state: VolumeState) -> dict[str, Any]:
    deadline = time.monotonic() + _STORE_SECONDS

    def give_up() -> None:
        if time.monotonic() > deadline:
            raise FusejournalError(_SILENT)

    try:
        found, unreadable = VolumeVersions(state.name, give_up).all()
    except (FusejournalError, OSError) as error:
        return {"error": str(error)}
    if unreadable:
        return {"error": str(unreadable[0].error)}
    listed = [one for one in found if one.history != "lost"]
    if not listed:
        return {"count": 0}
    version = listed[-1].version
    return {
        "count": len(listed),
        "name": version.name,
        "seq": int(version.seq),
        "time_ns": version.time_ns,
        "made_ns": version.made_ns,
    }
