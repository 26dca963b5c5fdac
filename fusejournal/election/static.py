"""The decision of a person, as the configuration has it: ``overrule`` names a reign that is none.
It holds as long as it stands there."""

from fusejournal.errors import ConfigError
from fusejournal.types import EPOCH_MAX, Epoch, Reign

_NODE_BITS = 64


def parse_reign(text: str) -> Reign:
    """The reign that :class:`Reign` prints as *text*. Raises ConfigError."""
    epoch, _, node = text.partition("/")
    try:
        reign = Reign(Epoch(int(epoch, 10)), int(node, 16))
        if 0 < reign.epoch <= EPOCH_MAX and 0 < reign.node_id < 1 << _NODE_BITS:
            return reign
    except ValueError:
        pass
    raise ConfigError(
        f"overrule: {text!r} is no reign: an epoch and a node, as in 7/00c0ffee00c0ffee, as the "
        "status of the fenced node has it"
    )


class PersonsWord:
    """A :class:`~fusejournal.election.lease.Lease` that a person gives: *overrule* is a reign as
    text, or None. Raises ConfigError."""

    def __init__(self, overrule: str | None) -> None:
        self._overruled = parse_reign(overrule) if overrule is not None else None

    def ended(self) -> Reign | None:
        """The reign that is overruled."""
        return self._overruled
