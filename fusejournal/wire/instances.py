"""Telling apart two nodes that have one key: a machine and its clone, or what was put back from a
copy of it while it went on. Pure; what it has to know after a restart of the mirror is in
:attr:`Instances.following`, for the caller to keep.

A node makes a number at each start, and says in its greeting that of the start before, too. A
mirror follows the one that it followed last, and the starts after that. Any other instance of the
same node is a rival while the one that is followed is heard; it and the starts after it stay one
until that was not heard for ``RIVAL_SECONDS``: then it is taken to be gone. After a restart of the
mirror these seconds begin anew, because it cannot know what it missed. Nodes that do not say which
instance they are, as those of the version before, are not told apart."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from fusejournal.journal.watermarks import RIVALS_MAX, Following
from fusejournal.wire.frames import Hello

RIVAL_SECONDS: Final = 600.0


class Instance(NamedTuple):
    """One start of a node, and where it calls from; empty where that is not known (any more)."""

    node: str
    node_id: int
    number: int
    before: int
    where: str

    def __str__(self) -> str:
        return f"{self.number:016x}" + (f" at {self.where}" if self.where else "")


def instance_of(greeting: Hello, where: str) -> Instance:
    """Who sent *greeting*, from *where*."""
    machine = where.rpartition(":")[0] or where  # its port is another each time
    return Instance(greeting.node, greeting.node_id, greeting.instance, greeting.before, machine)


@dataclass
class _Rival:
    instance: Instance | None
    """None where it was met before the mirror's restart."""
    at: float


class Instances:
    """Which instance of a node a mirror follows, and which others of the same node it has met; see
    the module. *known* is ``following`` of the process before. Times are in seconds by any
    clock."""

    def __init__(self, known: Following, now: float) -> None:
        self.followed: Instance | None = None
        if known.number:
            self.followed = Instance("", known.node_id, known.number, 0, "")
        self._heard_at = now
        self._rivals = {number: _Rival(None, now) for number in known.rivals}

    @property
    def following(self) -> Following:
        """What is to be known after a restart."""
        if self.followed is None:
            return Following()
        return Following(self.followed.node_id, self.followed.number, tuple(self._rivals))

    def is_other(self, newcomer: Instance) -> bool:
        """Whether *newcomer* is another instance of the node that is followed."""
        followed = self.followed
        return (
            followed is not None
            and self.is_of_followed(newcomer.node_id)
            and newcomer.number not in (0, followed.number)
            and followed.number != 0
        )

    def is_of_followed(self, node_id: int) -> bool:
        """Tells whether *node_id* is that of the node that is followed."""
        return self.followed is not None and 0 != node_id == self.followed.node_id

    def is_rival(self, newcomer: Instance, now: float) -> bool:
        """Whether *newcomer* is known to be another than the one followed, and the latter was heard
        not long ago."""
        if not self.is_other(newcomer) or now - self._heard_at > RIVAL_SECONDS:
            return False
        return newcomer.number in self._rivals or newcomer.before in self._rivals

    def met(self, rival: Instance, now: float) -> bool:
        """*rival* came while the one that is followed was there. Returns whether that is new."""
        before = self._rivals.pop(rival.number, None)
        is_new = before is None or before.instance is None
        self._rivals[rival.number] = _Rival(rival, now)
        while len(self._rivals) > RIVALS_MAX:
            del self._rivals[next(iter(self._rivals))]
        return is_new

    def follow(self, instance: Instance, now: float) -> None:
        """*instance* is followed from now on."""
        self._rivals.pop(instance.number, None)
        if self.followed is not None and instance.node_id != self.followed.node_id:
            self._rivals.clear()
        self.followed = instance
        self._heard_at = now

    def heard(self, now: float) -> None:
        """The one that is followed has said something."""
        self._heard_at = now

    def describe(self, now: float) -> str | None:
        """Says that one node runs twice, where it does, in words."""
        seen = [
            one.instance
            for one in self._rivals.values()
            if one.instance is not None and now - one.at <= RIVAL_SECONDS
        ]
        if not seen or self.followed is None:
            return None
        return describe_twice(self.followed, seen[-1])


def describe_twice(followed: Instance, rival: Instance) -> str:
    """That one node runs twice, in words."""
    return (
        f"{rival.node} runs twice, with one key: instance {followed}, which is followed, and "
        f"instance {rival}, which is refused: one is a copy of the other; stop that, and give it a "
        "state of its own"
    )
