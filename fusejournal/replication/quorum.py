"""Tracks the seq that each mirror has acknowledged: a caller that waits for a flush can also wait
until N mirrors have the entry.

When too few answer for ``mirrors_timeout_seconds``, the quorum is *degraded*: as configured, those
who wait go on (until N mirrors are level again), or wait on. Both are in the status. A mirror that
has lost something which it had acknowledged does not count before it has that again; and a primary
that is fenced answers no caller that waits any more.

A caller who is going to wait has a *place* first, of which there are ``PLACES``. ``FIRST_PLACES``
of them are only for users who have none; of the rest, each user may have as many as are left to all
others. So one who takes all there are leaves some to everybody else, and a group of users who do
leave each other user one. A caller without a place waits in line, with nothing done yet. While
mirrors answer, the line moves on; when they have not for a while, it is refused, because a caller
that stands in it keeps the layer from reading the next request.

Used from the event loop's thread. Cancelling a wait is harmless."""

import errno
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import trio

from fusejournal.config import ReplicationConfig
from fusejournal.types import Seq
from fusejournal.volume.trouble import Trouble, TroubleKind

log = logging.getLogger(__name__)

PLACES: Final = 448
"""Callers that may wait at once."""
FIRST_PLACES: Final = 64
"""The number of these that are kept for users of whom no caller waits."""
_BLOCKED_SECONDS: Final = 1.0
_SLOW_SECONDS: Final = 12.0
"""The line waits so long for mirrors that do not answer: where a caller with a place waits on for
ever; and where it goes on without them after a while, which is less by default."""


class Quorum:
    """The quorum of one primary. *head_seq* returns where the journal ends, *expedite* has entries
    shipped at once."""

    def __init__(
        self,
        config: ReplicationConfig,
        head_seq: Callable[[], Seq],
        expedite: Callable[[], None],
    ) -> None:
        self._mirrors = config.mirrors
        self._timeout_seconds = config.mirrors_timeout_seconds
        self._blocks = config.on_timeout == "block"
        self._head_seq = head_seq
        self._expedite = expedite
        self._acked: dict[str, Seq] = {}
        self._owed: dict[str, Seq] = {}
        """The seqs that mirrors had acknowledged which have less now."""
        self._away: set[str] = set()
        """Mirrors that are not connected."""
        self._counted: set[str] | None = None
        """The peers that count; None: all do."""
        self._changed = trio.Event()
        self._seq = Seq(0)
        self.waiting = 0
        """The number of callers that wait now."""
        self._placed: Counter[int] = Counter()
        """Places that each user has."""
        self._in_line = 0
        self._moved = trio.Event()
        """Set, and made anew, when the callers in line are to look again."""
        self._patience_seconds = _BLOCKED_SECONDS if self._blocks else _SLOW_SECONDS
        self._answered_at = 0.0
        """The time when the mirrors were known to answer, by trio's clock; while a caller waits."""
        self.degraded_since: float | None = None
        """The time since when it does not wait for them, by trio's clock."""
        self._target: tuple[Seq, float] = Seq(0), 0.0
        """The seq where the journal ended, and when; while degraded."""
        self._closed = False
        self.is_fenced = False
        """True if no mirror takes anything from here any more."""
        self.is_held = False
        """True if no caller is answered for now, however many mirrors have everything."""

    @property
    def seq(self) -> Seq:
        """The seq up to which N mirrors have acknowledged everything."""
        return self._seq

    @property
    def present_seq(self) -> Seq:
        """The seq up to which N mirrors that are connected have everything on disk."""
        return self._nth([seq for peer, seq in self._counting() if peer not in self._away])

    def left(self, peer: str) -> None:
        """*peer* is not connected any more: what it has now, it reports when it comes back."""
        self._away.add(peer)

    def lost(self, peer: str, seq: Seq) -> None:
        """*peer*, which had acknowledged everything up to *seq*, has less now."""
        self._owed[peer] = max(seq, self._owed.get(peer, Seq(0)))
        self._acked.pop(peer, None)
        self._count()

    def acked(self, peer: str, seq: Seq) -> None:
        """*peer* has everything up to *seq* on disk."""
        self._away.discard(peer)
        if seq < self._owed.get(peer, 0):
            return
        self._owed.pop(peer, None)
        if seq > self._acked.get(peer, 0):
            self._acked[peer] = seq
        elif self.degraded_since is None:
            return
        self._count()

    def forget(self, peer: str) -> None:
        """*peer* does not count any more."""
        self._acked.pop(peer, None)
        self._owed.pop(peer, None)
        self._away.discard(peer)
        self._count()

    def _count(self) -> None:
        if not self._mirrors:
            return
        before, self._seq = self._seq, self._nth([seq for _, seq in self._counting()])
        if self._seq > before and self.waiting:
            self._answered_at = trio.current_time()
        if self.degraded_since is not None:
            self._look_again()
        self._wake()

    def _counting(self) -> Iterable[tuple[str, Seq]]:
        """Returns what each peer that counts has."""
        counted = self._counted
        if counted is None:
            return self._acked.items()
        return [(peer, seq) for peer, seq in self._acked.items() if peer in counted]

    def _nth(self, seqs: list[Seq]) -> Seq:
        """Returns the highest that as many as are wanted have."""
        acked = sorted(seqs, reverse=True)
        return acked[self._mirrors - 1] if 0 < self._mirrors <= len(acked) else Seq(0)

    def _look_again(self) -> None:
        """Count the mirrors again once they have everything, or are so near that no caller would
        have to wait too long."""
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
        self._move_on()

    def _move_on(self) -> None:
        if self._in_line:
            moved, self._moved = self._moved, trio.Event()
            moved.set()

    def try_enter(self, uid: int) -> bool:
        """Take a place for a caller with *uid*, who may be about to wait; :meth:`leave` follows.
        Returns False where there is none for it now."""
        left = PLACES - self._placed.total()
        if uid in self._placed:
            left -= FIRST_PLACES
        if self._placed[uid] >= left:
            return False
        self._placed[uid] += 1
        return True

    async def enter(self, uid: int) -> None:
        """Take a place when there is one. Raises OSError EAGAIN when the mirrors do not answer, or
        the node ends; EROFS when it is fenced. Cancelling leaves the line."""
        self._in_line += 1
        try:
            while not self.try_enter(uid):
                self._check_open()
                with trio.move_on_at(self._answered_at + self._patience_seconds) as waiting:
                    if not self.waiting:
                        waiting.deadline = math.inf  # it is the disk here that takes its time
                    await self._moved.wait()
                if waiting.cancelled_caught:
                    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        finally:
            self._in_line -= 1

    def leave(self, uid: int) -> None:
        """Give the place of a caller with *uid* back."""
        self._placed[uid] -= 1
        if not self._placed[uid]:
            del self._placed[uid]
        self._move_on()

    def has(self, seq: Seq) -> bool:
        """Returns True if no caller need wait for *seq*."""
        return not self.is_held and (
            not self._mirrors
            or self._seq >= seq
            or (self.degraded_since is not None and not self._blocks and not self.is_fenced)
        )

    def count_only(self, peers: set[str] | None) -> None:
        """Count what *peers* have, and no other peer; None: what any has."""
        if peers != self._counted:
            self._counted = peers
            self._count()

    def hold(self, is_held: bool) -> None:
        """Have no caller answered as long as it *is_held*, because which mirrors count is changing
        (membership.py)."""
        if is_held != self.is_held:
            self.is_held = is_held
            self._wake()

    def want(self, seq: Seq) -> None:
        """Have *seq*, which a caller is going to wait for, shipped at once."""
        if not self.has(seq):
            self._expedite()

    async def wait(self, seq: Seq) -> None:
        """Return when N mirrors have everything up to *seq*, or, as configured, when they are too
        slow. Cancelling is harmless. Raises OSError EAGAIN when the node ends: whether they have
        it, the next can tell; EROFS when it is fenced: they will not have it from here."""
        if self.has(seq):
            return
        self._expedite()
        if not self.waiting:
            self._answered_at = trio.current_time()
            self._move_on()
        self.waiting += 1
        try:
            while True:
                with trio.move_on_after(self._timeout_seconds):
                    await self._until(seq)
                    return
                if not self.is_held:  # (else it is not the mirrors that are too slow)
                    break
            self._degrade()
            await self._until(seq)
        finally:
            self.waiting -= 1

    async def _until(self, seq: Seq) -> None:
        while not self.has(seq):
            self._check_open()
            await self._changed.wait()

    def _check_open(self) -> None:
        if self.is_fenced:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if self._closed:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def close(self) -> None:
        """End all waits, because the node ends."""
        self._closed = True
        self._wake()

    def fence(self) -> None:
        """End all waits, because no mirror takes anything from here any more."""
        self.is_fenced = True
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

    def trouble(self) -> Trouble | None:
        """Returns that it is degraded; None where it is not."""
        if self.degraded_since is None:
            return None
        seconds = trio.current_time() - self.degraded_since
        then = "what waits for a flush is blocked" if self._blocks else "nothing waits for them"
        words = f"fewer than {self._mirrors} mirrors have everything, for {seconds:.0f} s: {then}"
        return Trouble(TroubleKind.QUORUM, words)
