"""The roles of a node, as states, events and a table of what leads where. Pure: what keeps a role
(node/state_dir.py) or stands on one (node/assemble.py) asks this module what it means.

==============  ===============  =============  ==================================================
role            takes changes    takes batches  what it is
==============  ===============  =============  ==================================================
primary         yes              no             its callers' changes make the journal
uninitialized   no               yes            a mirror without a journal: it becomes one of the
                                                volume that its first primary says
mirror          no               yes            a primary's entries make the journal
reader          no               no             opened to be read, for one run
==============  ===============  =============  ==================================================

==============  ==================  ==============
from            event               to
==============  ==================  ==============
primary         called a primary    primary
primary         called a mirror     uninitialized
uninitialized   called a primary    primary
uninitialized   called a mirror     uninitialized
uninitialized   joined a volume     mirror
mirror          called a primary    primary
mirror          called a mirror     uninitialized
mirror          promoted            primary
primary         demoted             mirror
primary         opened to be read   reader
uninitialized   opened to be read   reader
mirror          opened to be read   reader
==============  ==================  ==============

A new volume is a primary. What a person calls it counts only while it has no entry: from then on a
role is never changed by mounting, but by a promotion or a demotion, which comes with a reign: the
one that the promoted node is to begin, or the one that the demoted node follows. Role and reign are
one record, kept in volume.json and replaced in one step. Whether a primary still reigns is not in
its role but in the fence, which lies on the page of watermarks (replication/fence.py)."""

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Event(Enum):
    """Something that may change a role."""

    CALLED_PRIMARY = "called a primary"
    CALLED_MIRROR = "called a mirror"
    JOINED = "joined a volume"
    PROMOTED = "promoted"
    DEMOTED = "demoted"
    OPENED_TO_READ = "opened to be read"


class Role(Enum):
    """The role of a node: see the module."""

    PRIMARY = "primary"
    UNINITIALIZED = "uninitialized"
    MIRROR = "mirror"
    READER = "reader"

    @property
    def takes_changes(self) -> bool:
        """True if the changes of its callers make its journal."""
        return self is Role.PRIMARY

    @property
    def takes_batches(self) -> bool:
        """True if its journal comes from a primary alone."""
        return self in (Role.MIRROR, Role.UNINITIALIZED)

    @property
    def replicates(self) -> bool:
        """True if it talks to other nodes."""
        return self is not Role.READER

    def after(self, event: Event) -> "Role":
        """The role that *event* leads to from here. Raises KeyError where that cannot come."""
        return ROLE_TRANSITIONS[self, event]


NEW: Final = Role.PRIMARY
"""The role of a volume that was never called anything."""

ROLE_TRANSITIONS: Final[Mapping[tuple[Role, Event], Role]] = {
    (Role.PRIMARY, Event.CALLED_PRIMARY): Role.PRIMARY,
    (Role.PRIMARY, Event.CALLED_MIRROR): Role.UNINITIALIZED,
    (Role.UNINITIALIZED, Event.CALLED_PRIMARY): Role.PRIMARY,
    (Role.UNINITIALIZED, Event.CALLED_MIRROR): Role.UNINITIALIZED,
    (Role.UNINITIALIZED, Event.JOINED): Role.MIRROR,
    (Role.MIRROR, Event.CALLED_PRIMARY): Role.PRIMARY,
    (Role.MIRROR, Event.CALLED_MIRROR): Role.UNINITIALIZED,
    (Role.MIRROR, Event.PROMOTED): Role.PRIMARY,
    (Role.PRIMARY, Event.DEMOTED): Role.MIRROR,
    (Role.PRIMARY, Event.OPENED_TO_READ): Role.READER,
    (Role.UNINITIALIZED, Event.OPENED_TO_READ): Role.READER,
    (Role.MIRROR, Event.OPENED_TO_READ): Role.READER,
}
