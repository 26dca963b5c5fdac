"""Wakes the shippers, which wait for the journal to grow.

An entry costs two comparisons here. A shipper that has nothing to send waits for any entry beyond
the last; then, for a batch's age at most, for a whole batch, or until a caller waits for a mirror.

Used from the event loop's thread."""

import trio

from fusejournal.types import Seq

_NEVER = 1 << 63


class AppendNotifier:
    """Learns of entries as its volume's observer does (volume/observer.py)."""

    def __init__(self) -> None:
        self._applied_seq = Seq(0)
        self._grown = trio.Event()
        self._watched_seq = _NEVER
        """No shipper waits for an entry that is not beyond it."""
        self._gathering: dict[trio.Event, int] = {}
        self._least_bytes = _NEVER
        self._expedited_seq = Seq(0)
        """The seq up to which everything is to be shipped at once."""
        self.bytes = 0
        """The bytes that the journal has grown by since the volume was opened."""

    def entry_applied(self, applied_seq: Seq, appended_bytes: int) -> None:
        """Everything up to *applied_seq* is there; the journal has grown by *appended_bytes*."""
        self._applied_seq, self.bytes = applied_seq, appended_bytes
        if applied_seq > self._watched_seq:
            self._watched_seq = _NEVER
            grown, self._grown = self._grown, trio.Event()
            grown.set()
        if appended_bytes >= self._least_bytes:
            self._wake(appended_bytes)

    def _wake(self, grown_bytes: int) -> None:
        for event, least in list(self._gathering.items()):
            if least <= grown_bytes:
                del self._gathering[event]
                event.set()
        self._least_bytes = min(self._gathering.values(), default=_NEVER)

    async def wait_past(self, seq: Seq) -> None:
        """Return when an entry after *seq* is applied. Cancelling is harmless."""
        while self._applied_seq <= seq:
            self._watched_seq = min(self._watched_seq, seq)
            await self._grown.wait()

    async def wait_for_batch(self, grown_bytes: int, seconds: float, seq: Seq) -> None:
        """Return when ``bytes`` is at least *grown_bytes*, after *seconds*, or when
        :meth:`expedite` is called for *seq* or a later entry. Cancelling is harmless."""
        if self._expedited_seq >= seq:
            return
        event = trio.Event()
        self._gathering[event] = grown_bytes
        self._least_bytes = min(self._least_bytes, grown_bytes)
        try:
            with trio.move_on_after(seconds):
                await event.wait()
        finally:
            self._gathering.pop(event, None)

    def expedite(self) -> None:
        """Have the shippers send at once what is there, because a caller waits for a mirror."""
        self._expedited_seq = self._applied_seq
        self._wake(_NEVER)
