"""The decision of a person, as the configuration has it: ``overrule`` names a reign that is none.
It holds as long as it stands there."""

from fusejournal.errors import ConfigError
from fusejournal.types import Reign, reign_of_text


def parse_reign(text: str) -> Reign:
    """The reign that :class:`Reign` prints as *text*. Raises ConfigError."""
    try:
        return reign_of_text(text)
    except ValueError:
        raise ConfigError(
            f"overrule: {text!r} is no reign: an epoch and a node, as in 7/00c0ffee00c0ffee, as "
            "the status of the fenced node has it"
        ) from None


class PersonsWord:
    """A :class:`~fusejournal.election.lease.Lease` that a person gives: *overrule* is a reign as
    text, or None. Raises ConfigError."""

    def __init__(self, overrule: str | None) -> None:
        self._overruled = parse_reign(overrule) if overrule is not None else None

    def ended(self) -> Reign | None:
        """The reign that is overruled."""
        return self._overruled
