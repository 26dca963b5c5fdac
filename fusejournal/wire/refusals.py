"""The codes of refusals (REFUSAL, frames.py): why a session goes no further, for programs.

Pure. The words are on the wire, so none changes; those of a later version are OTHER here."""

from enum import StrEnum


class RefusalCode(StrEnum):
    """The reason of a refusal. PROTOCOL.md has what each means, MANUAL.md what to do."""

    VERSION = "version"
    """One side does not understand the other."""
    VOLUME = "volume"
    """The two are of different volumes."""
    UNINITIALIZED = "unborn"
    """The source has no volume yet. (The word is of 0.1.0.)"""
    ROLE = "role"
    """The listener is in another role than this session needs."""
    DIRECTION = "direction"
    """The two ship to each other."""
    FENCED = "fenced"
    """Another node has become primary, or has begun the same epoch."""
    INSTANCE = "instance"
    """Two nodes with one key run at once."""
    BUSY = "busy"
    """The listener has to do with another node."""
    SERVED = "served"
    """The primary itself ships to the sink."""
    FULL = "full"
    """The sink has no space."""
    COPY = "copy"
    """The journal has no longer what the sink lacks."""
    FAILED = "failed"
    """The disk of the listener has failed."""
    HANDOFF = "handoff"
    """The listener does not take over."""
    MEMBERS = "members"
    """The sink acknowledges a record of members that it was not told."""
    TWICE = "twice"
    """Two names of the source's lead to this one node."""
    OTHER = "other"
    """A code that this version does not know. No node begins with it."""

    @classmethod
    def of(cls, word: str) -> "RefusalCode":
        """Returns the code that a peer sends as *word*."""
        try:
            return cls(word)
        except ValueError:
            return cls.OTHER
