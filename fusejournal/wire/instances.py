"""Distinguishes two nodes that have one key: a machine and its clone, or a restored snapshot beside
the machine that it was taken of.

A node makes a number at each start, and gives that of the start before in its greeting, too. A
mirror follows the instance that it followed last, and the starts after that. Any other instance of
the same node is a rival while the followed one is heard; it and the starts after it stay rivals
until the followed one was not heard for ``RIVAL_SECONDS``, and so is taken to be gone. After a
restart of the mirror these seconds begin anew, because it cannot know what it missed. Nodes that do
not give their instance, as early ones, are not distinguished.

Pure. The caller keeps :attr:`Instances.following` on disk, for the mirror's next start."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from fusejournal.journal.watermarks import RIVALS_MAX, Following
from fusejournal.wire.frames import Hello

RIVAL_SECONDS: Final = 600.0


class Instance(NamedTuple):
    """One start of a node. ``where`` is the address that it calls from; empty where that is not
    known (any more)."""

    node: str
    node_id: int
    number: int
    before: int
    where: str

    def __str__(self) -> str:
        return f"{self.number:016x}" + (f" at {self.where}" if self.where else "")


def instance_of(greeting: Hello, where: str) -> Instance:
    """Returns the instance that sent *greeting*, from *where*."""
    machine = where.rpartition(":")[0] or where  # its port is another each time
    return Instance(greeting.node, greeting.node_id, greeting.instance, greeting.before, machine)


@dataclass
class _Rival:
    instance: Instance | None
    """None where it was met before the mirror's restart."""
    at: float


class Instances:
    """Remembers which instance of a node a mirror follows, and which others of the same node it
    has met. *known* is ``following`` of the process before. Times are in seconds by any clock."""

    def __init__(self, known: Following, now: float) -> None:
        self.followed: Instance | None = None
        if known.number:
            self.followed = Instance("", known.node_id, known.number, 0, "")
        self._heard_at = now
        self._rivals = {number: _Rival(None, now) for number in known.rivals}

    @property
    def following(self) -> Following:
        """The state that the mirror needs after a restart."""
        if self.followed is None:
            return Following()
        return Following(self.followed.node_id, self.followed.number, tuple(self._rivals))

    def is_other(self, newcomer: Instance) -> bool:
        """Returns True if *newcomer* is another instance of the node that is followed."""
        followed = self.followed
        return (
            followed is not None
            and self.is_of_followed(newcomer.node_id)
            and newcomer.number not in (0, followed.number)
            and followed.number != 0
        )

    def is_of_followed(self, node_id: int) -> bool:
        """Returns True if *node_id* is that of the node that is followed."""
        return self.followed is not None and 0 != node_id == self.followed.node_id

    def is_rival(self, newcomer: Instance, now: float) -> bool:
        """Returns True if *newcomer* is known to be another instance than the followed one, and the
        latter was heard not long ago."""
        if not self.is_other(newcomer) or now - self._heard_at > RIVAL_SECONDS:
            return False
        return newcomer.number in self._rivals or newcomer.before in self._rivals

    def met(self, rival: Instance, now: float) -> bool:
        """Notes that *rival* came while the followed one was there. Returns whether that is new."""
        before = self._rivals.pop(rival.number, None)
        is_new = before is None or before.instance is None
        self._rivals[rival.number] = _Rival(rival, now)
        while len(self._rivals) > RIVALS_MAX:
            del self._rivals[next(iter(self._rivals))]
        return is_new

    def follow(self, instance: Instance, now: float) -> None:
        """Notes that *instance* is followed from now on."""
        self._rivals.pop(instance.number, None)
        if self.followed is not None and instance.node_id != self.followed.node_id:
            self._rivals.clear()
        self.followed = instance
        self._heard_at = now

    def heard(self, now: float) -> None:
        """Notes that the followed instance has sent something."""
        self._heard_at = now

    def describe(self, now: float) -> str | None:
        """Returns that one node runs twice, in words; None where none was seen to."""
        seen = [
            one.instance
            for one in self._rivals.values()
            if one.instance is not None and now - one.at <= RIVAL_SECONDS
        ]
        if not seen or self.followed is None:
            return None
        return describe_twice(self.followed, seen[-1])


def describe_twice(followed: Instance, rival: Instance) -> str:
    """Returns that one node runs twice, and what to do, in words."""
    return (
        f"{rival.node} runs twice, with one key: instance {followed}, which is followed, and "
        f"instance {rival}, which is refused: one is a copy of the other; stop that, and give it a "
        "state of its own"
    )
