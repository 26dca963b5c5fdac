"""The small values every other module speaks in. No I/O, no behaviour.

A ``Seq`` numbers an entry from 1 without gaps; 0 means "before the first entry". Ranges of seqs
are half-open in code and inclusive (and so labelled) in the command line. All times are
nanoseconds since 1970 UTC."""

import re
from collections.abc import Callable
from typing import Final, NamedTuple, NewType

Seq = NewType("Seq", int)
Epoch = NewType("Epoch", int)
Fid = NewType("Fid", int)

ROOT_FID = Fid(1)
"""The volume's root directory: FUSE's own number for it."""

EPOCH_SHIFT = 40
"""A fid's high bits, from this one, are its epoch's number less one, so that no two epochs give
the same fid."""

EPOCH_MAX = 1 << (63 - EPOCH_SHIFT)
"""The epochs that there can be: so few that every fid is a positive 64-bit number."""
_NODE_BITS = 64
_SEQ_BITS = 63
_POSITION: Final = re.compile(r"([0-9]{1,19})/([0-9]{1,19})/([0-9a-f]{16})")
_COOKIE_BASE = 4

NAME_BYTES_MAX = 255
"""The longest name in a directory: the kernel's NAME_MAX."""

GIVEN_NAME_MAX = 128
"""The longest name of a volume, in bytes, and of a mark, in characters."""

TIME_MIN_NS = -(2**31 - 1) * 10**9
TIME_MAX_NS = (2**34 - 2**31 - 1) * 10**9
"""Times every supported backing holds to the nanosecond (ext4 with 256-byte inodes is the
narrowest: 1901 to 2446)."""

Progress = Callable[[int, int | None], None]
"""Takes how much of a long work is done, and of how much; None: not known."""

StageProgress = Callable[[str, int, int | None, str], None]
"""Receives the stage, how much is done, of how much (None: not known), and the unit; may raise
what is to end the work there."""


class Caller(NamedTuple):
    """The caller of an operation, as the kernel reports it."""

    uid: int
    gid: int
    pid: int


NOWHERE = "none"
"""The word for no address to listen at."""

SYSTEM_CALLER = Caller(0, 0, 0)
"""The layer itself: import, recovery, marks."""


class Position(NamedTuple):
    """A point in a log. Two logs of one volume with equal positions are equal up to there."""

    epoch: Epoch
    seq: Seq
    chain: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.seq}/{self.chain:016x}"


SeqOrPosition = int | Position
"""An entry as people name it: by its seq, or by its position, which also identifies its history."""


class Reign(NamedTuple):
    """A time with one primary: the epoch, and the node that began it. ``node_id`` is 0 if it is not
    known, as with nodes of a version that did not send it. Two reigns of one epoch cannot be."""

    epoch: Epoch
    node_id: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.node_id:016x}"

    def is_rival(self, other: "Reign") -> bool:
        """Returns True if *other* is of the same epoch, and another node's."""
        known = self.node_id != 0 and other.node_id != 0
        return known and self.epoch == other.epoch and self.node_id != other.node_id

    def after(self, seen: "Reign") -> "Reign":
        """Returns the highest reign that is known once *seen* was seen after this one. A known
        ``node_id`` is kept where *seen* has the same epoch and names no node."""
        if seen.epoch == self.epoch:
            return self if seen.node_id == 0 else seen
        return max(self, seen, key=lambda reign: reign.epoch)


def reign_of_text(text: str) -> Reign:
    """Returns the reign which prints as *text*. Raises ValueError."""
    epoch, _, node = text.partition("/")
    reign = Reign(Epoch(int(epoch, 10)), int(node, 16))
    if not (0 < reign.epoch <= EPOCH_MAX and 0 <= reign.node_id < 1 << _NODE_BITS):
        raise ValueError(f"{text!r} is no reign")
    return reign


def position_of_text(text: str) -> Position:
    """Returns the position which prints as *text*. Raises ValueError."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no position, which is EPOCH/SEQ/CHAIN")
    epoch, seq, chain = found.groups()
    position = Position(Epoch(int(epoch, 10)), Seq(int(seq, 10)), int(chain, 16))
    if position.epoch > EPOCH_MAX or position.seq >> _SEQ_BITS:
        raise ValueError(f"{text!r} is no position: there can be no such epoch or seq")
    return position


def clamp_time(time_ns: int) -> int:
    """Returns the nearest time that every supported backing can hold."""
    return min(max(time_ns, TIME_MIN_NS), TIME_MAX_NS)


def time_to_word(time_ns: int) -> int:
    """Returns a time that every supported backing can hold, in 64 bits."""
    return time_ns & (1 << 64) - 1


def word_to_time(word: int) -> int:
    """Returns the time that :func:`time_to_word` made *word* of."""
    return word if word <= TIME_MAX_NS else word - (1 << 64)


assert time_to_word(TIME_MIN_NS) > TIME_MAX_NS


def first_fid(epoch: Epoch) -> Fid:
    """Returns the first fid that *epoch* may give to a new file."""
    return Fid(((epoch - 1) << EPOCH_SHIFT) + 2)


def cookie_of(seq: Seq) -> int:
    """Returns the cookie of a name that entry *seq* made: nfsd refuses 1 and 2."""
    return _COOKIE_BASE + 2 * seq
