"""The report of a restore beside a volume, as data. Loads neither a journal nor a store."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fusejournal.control.reply import Reply

if TYPE_CHECKING:
    from fusejournal.replay.made_aside import Restored
    from fusejournal.versions.manifest import Version


@dataclass(frozen=True, kw_only=True)
class RestoreReport(Reply):
    """A tree, directory or file that was restored beside its volume."""

    OMITTED: ClassVar[frozenset[str]] = frozenset({"from_version"})

    target: str
    """The path of what was asked for."""
    names: int
    as_of_seq: int
    """The last entry that it has."""
    from_version: str | None = None
    """The key of the version that it was made from; None where the journal alone was."""

    @classmethod
    def of_restored(cls, done: "Restored", seq: int, version: "Version | None") -> "RestoreReport":
        """Returns the report on *done*, which is as of *seq*, and was made from *version*."""
        key = None if version is None else version.key
        return cls(target=str(done.path), names=done.names, as_of_seq=seq, from_version=key)
