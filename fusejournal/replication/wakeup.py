"""Waking a task."""

import trio


class Wakeup:
    """Wakes the task that waits for it, once for all calls since it waited last. One task at a time
    may wait; cancelling that is harmless."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Wake the task, now or when it waits next."""
        self._event.set()

    async def wait(self) -> None:
        """Return when :meth:`set` was called after the last return. Cancelling loses no call."""
        await self._event.wait()
        self._event = trio.Event()
