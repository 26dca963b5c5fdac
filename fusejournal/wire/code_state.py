"""The states of a pairing code, as answers give them. Loads little, because the command line reads
them."""

from fusejournal.control.reply import ReportedState


class CodeState(ReportedState):
    """The state of a code that was given out."""

    WAITING = "waiting"
    USED = "used"
    """The right proof has come; the other end may not be kept yet."""
    PAIRED = "paired"
    """The other end is kept."""
    FAILED = "failed"
    """Used up, but the other end could not be kept."""
    EXPIRED = "expired"
    CLOSED = "closed"
    """Taken back, or not known any more."""
