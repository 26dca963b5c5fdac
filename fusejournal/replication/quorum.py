"""How many mirrors have what: lets whoever waits for a flush also wait for N of them.

When too few answer for ``mirrors_timeout_seconds``, the quorum is *degraded*: as configured, those
who wait go on (until N mirrors are level again), or wait on. Both are said in the status.

Used from the event loop's thread. Cancelling a wait is harmless."""

import errno
import logging
import os
from collections.abc import Callable

import trio

from fusejournal.config import ReplicationConfig
from fusejournal.types import Seq

log = logging.getLogger(__name__)


class Quorum:
    """See the module. *head_seq* tells where the journal ends, *hurry* has entries shipped at
    once."""

    def __init__(
        self,
        config: ReplicationConfig,
        head_seq: Callable[[], Seq],
        hurry: Callable[[], None],
    ) -> None:
        self._mirrors = config.mirrors
        self._timeout_seconds = config.mirrors_timeout_seconds
        self._blocks = config.on_timeout == "block"
        self._head_seq = head_seq
        self._hurry = hurry
        self._acked: dict[str, Seq] = {}
        self._changed = trio.Event()
        self._seq = Seq(0)
        self.waiting = 0
        """How many wait now."""
        self.degraded_since: float | None = None
        """By trio's clock."""
        self._target: tuple[Seq, float] = Seq(0), 0.0
        """While degraded: where the journal ended, and when."""
        self._closed = False

    @property
    def seq(self) -> Seq:
        """Up to here N mirrors have everything on disk."""
        return self._seq

    def acked(self, peer: str, seq: Seq) -> None:
        """*peer* has everything up to *seq* on disk."""
        if seq > self._acked.get(peer, 0):
            self._acked[peer] = seq
        elif self.degraded_since is None:
            return
        self._count()

    def forget(self, peer: str) -> None:
        """*peer* does not count any more."""
        self._acked.pop(peer, None)
        self._count()

    def _count(self) -> None:
        if not self._mirrors:
            return
        acked = sorted(self._acked.values(), reverse=True)
        self._seq = acked[self._mirrors - 1] if len(acked) >= self._mirrors else Seq(0)
        if self.degraded_since is not None:
            self._look_again()
        self._wake()

    def _look_again(self) -> None:
        """Count the mirrors again once they have everything, or are so near that nobody would have
        to wait too long."""
        target_seq, since = self._target
        head_seq = self._head_seq()
        if self._seq < target_seq:
            return
        now = trio.current_time()
        if self._seq >= head_seq or now - since <= self._timeout_seconds:
            log.warning("%d mirrors have everything again", self._mirrors)
            self.degraded_since = None
        else:
            self._target = head_seq, now

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def has(self, seq: Seq) -> bool:
        """Whether nobody need wait for *seq*."""
        return (
            not self._mirrors
            or self._seq >= seq
            or (self.degraded_since is not None and not self._blocks)
        )

    def want(self, seq: Seq) -> None:
        """Somebody is going to wait for *seq*: have it shipped at once."""
        if not self.has(seq):
            self._hurry()

    async def wait(self, seq: Seq) -> None:
        """Return when N mirrors have everything up to *seq*, or, as configured, when they are too
        slow. Raises OSError EAGAIN when the node ends: whether they have it, the next can tell."""
        if self.has(seq):
            return
        self._hurry()
        self.waiting += 1
        try:
            with trio.move_on_after(self._timeout_seconds):
                await self._until(seq)
                return
            self._degrade()
            await self._until(seq)
        finally:
            self.waiting -= 1

    async def _until(self, seq: Seq) -> None:
        while not self.has(seq):
            if self._closed:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            await self._changed.wait()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        self._wake()

    def _degrade(self) -> None:
        if self.degraded_since is None:
            self.degraded_since = trio.current_time()
            self._target = self._head_seq(), self.degraded_since
            log.warning(
                "%d mirrors have not answered for %g s: %s",
                self._mirrors,
                self._timeout_seconds,
                "changes wait for them" if self._blocks else "changes go on without them",
            )
            self._wake()

    def describe(self) -> str | None:
        """What is wrong, in words, or None."""
        if self.degraded_since is None:
            return None
        seconds = trio.current_time() - self.degraded_since
        then = "what waits for a flush is blocked" if self._blocks else "nothing waits for them"
        return f"fewer than {self._mirrors} mirrors have everything, for {seconds:.0f} s: {then}"
