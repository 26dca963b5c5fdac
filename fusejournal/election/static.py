"""The decision of a person, as the configuration has it: ``overrule`` names a reign that is none.
It holds as long as it stands there. So does ``begin_alone``, which names the one reign that a
primary may begin with fewer votes than it needs (replication/canvass.py)."""

from typing import Final

from fusejournal.errors import ConfigError
from fusejournal.types import Reign, reign_of_text

_SAID_BY: Final = {
    "overrule": "the status of the fenced node has it",
    "begin_alone": "the start that waits has it",
}


def parse_reign(text: str, key: str = "overrule") -> Reign:
    """The reign that :class:`Reign` prints as *text*, the configuration's *key*. One of which only
    the epoch is known may be overruled: a fence that a node brought which does not name who began
    its epoch prints so. Raises ConfigError."""
    try:
        reign = reign_of_text(text)
        if not reign.node_id and key != "overrule":
            raise ValueError("of no node")
        return reign
    except ValueError:
        raise ConfigError(
            f"{key}: {text!r} is no reign: an epoch and a node, as in 7/00c0ffee00c0ffee, as "
            f"{_SAID_BY[key]}"
        ) from None


class PersonsWord:
    """A :class:`~fusejournal.election.lease.Lease` that a person gives: *overrule* is a reign as
    text, or None. That of an unknown node is no reign of a known one. Raises ConfigError."""

    def __init__(self, overrule: str | None) -> None:
        self._overruled = parse_reign(overrule) if overrule is not None else None

    def ended(self) -> Reign | None:
        """The reign that is overruled."""
        return self._overruled
