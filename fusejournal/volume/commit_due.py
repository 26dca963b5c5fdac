"""Wakes the task that commits the catalog, when much has changed since it did.

Made by the process that opens the volume; the catalog notes it, and durability.py waits. Used from
the event loop's thread; before that runs, notes are nothing to anyone."""

import trio


class CommitDue:
    """Wakes the task of one catalog."""

    def __init__(self) -> None:
        self._noted = trio.Event()

    def note(self) -> None:
        """Wake the task that waits."""
        self._noted.set()

    async def wait(self) -> None:
        """Return when a commit is due from now on. Cancelling is harmless. (What is noted while no
        task waits is not kept: a commit follows each return at once.)"""
        self._noted = trio.Event()
        await self._noted.wait()
