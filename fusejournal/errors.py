"""Every error a user can meet, each with the exit code the command line ends with.

What comes from disk, a peer or a user is checked and raised as one of these: one line, saying
what, where and what to do next. The message is made from typed fields so that a script
(``--json``) can read them too."""

import errno
import os
from pathlib import Path


def printable(raw: bytes) -> str:
    """Returns a file name or path as a message shows it: what is not printable UTF-8 is escaped."""
    return printable_text(raw.decode("utf-8", "backslashreplace"))


def printable_text(text: str) -> str:
    """Returns *text* in one line: what is not printable is escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class FusejournalError(Exception):
    """Base of the tree. ``exit_code`` is the process's status when it reaches the command line. Its
    message is one line, whatever names and words of others are in it."""

    exit_code = 1

    def __str__(self) -> str:
        return printable_text(super().__str__())


class UsageError(FusejournalError):
    """The command line or configuration asks for something that makes no sense."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file that cannot be used."""


class VolumeNotFoundError(FusejournalError):
    """No volume of that name, mountpoint or state directory."""

    exit_code = 3

    def __init__(self, volume: str, words: str = "") -> None:
        self.volume = volume
        words = words or ": give a name, a mountpoint or a state directory (see 'status')"
        super().__init__(f"no volume {volume!r}{words}")


class UntrustedStateError(VolumeNotFoundError):
    """A state directory that another user may have written: it is no evidence of a volume."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(str(path))
        self.args = (f"{path}: {reason}",)


class VolumeBusyError(FusejournalError):
    """Another process holds the volume, or something still uses its mount."""

    exit_code = 4


class BackingError(FusejournalError):
    """The backing directory cannot carry a volume, or is not this volume's."""

    exit_code = 5

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class MountError(FusejournalError):
    """The kernel refused the mount, or the mount died before it was live."""

    exit_code = 6


class GreetingError(MountError):
    """This program would answer the kernel's greeting otherwise than the one that mounted."""


class NotRunningError(FusejournalError):
    """The volume is known but no layer is running on it."""

    exit_code = 7


class PrivilegeError(FusejournalError):
    """Root is needed."""

    exit_code = 8


class JournalError(FusejournalError):
    """The journal cannot be used as it is."""

    exit_code = 10


class JournalPrunedError(JournalError):
    """Entries that were there when reading began were pruned since."""


class JournalDamagedError(JournalError):
    """Bytes in the journal that should not change have changed. Never skipped."""

    exit_code = 11
    verdict = "the journal is damaged"
    """The meaning for the journal, in a few words."""

    def __init__(self, segment: Path | str, offset: int, seq: int, reason: str) -> None:
        self.segment = Path(segment)
        self.offset = offset
        self.seq = seq
        self.reason = reason
        super().__init__(self._words())

    def _words(self) -> str:
        return f"{self.segment}: damaged at byte {self.offset}, seq {self.seq}: {self.reason}"


class JournalVersionError(JournalDamagedError):
    """An entry that is whole, and that only a later version of this program can read. The journal
    cannot be gone on with by this one, as if it were damaged; but nothing is wrong with it."""

    exit_code = 29
    verdict = "the journal is of a newer version of fusejournal"

    def _words(self) -> str:
        return (
            f"{self.segment}: written by a newer version of fusejournal, from byte {self.offset}, "
            f"seq {self.seq} on ({self.reason}): upgrade this one; the journal is not damaged"
        )


class JournalForeignError(JournalError):
    """A segment of another volume, or of a format this program does not know."""

    exit_code = 12


class JournalFullError(JournalError):
    """No space for the next entry, or no descriptor or memory for it (see ``errno``); nothing was
    written. The caller gets that errno."""

    exit_code = 13

    def __init__(self, message: str, number: int = errno.ENOSPC) -> None:
        self.errno = number
        super().__init__(message)


class JournalFailedError(JournalError):
    """The disk under the journal failed. From here on the volume is read-only."""

    exit_code = 14


class RecoveryError(FusejournalError):
    """Backing and journal cannot be made to agree without losing something."""

    exit_code = 15


class NoSuchSeqError(FusejournalError):
    """A seq that the journal does not have."""

    exit_code = 16

    def __init__(self, seq: int, first_seq: int, head_seq: int, nearest: str = "") -> None:
        self.seq = seq
        self.first_seq = first_seq
        self.head_seq = head_seq
        self.nearest = nearest
        super().__init__(self._words())

    def _words(self) -> str:
        return (
            f"no entry {self.seq}: the journal here has {self.first_seq} to {self.head_seq}"
            f"{self.nearest}"
        )


class OtherHistoryError(NoSuchSeqError):
    """A position whose entry is another one in this journal: it is of another history."""

    def __init__(self, wanted: str, found: str, seq: int, first_seq: int, head_seq: int) -> None:
        self.wanted = wanted
        self.found = found
        super().__init__(seq, first_seq, head_seq)

    def _words(self) -> str:
        return (
            f"{self.wanted} is of another history: the position of entry {self.seq} is "
            f"{self.found} here"
        )


class PathNotFoundError(FusejournalError):
    """A path that does not exist, or never did."""

    exit_code = 17

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class NoSuchMomentError(FusejournalError):
    """A time before the journal, or words that are neither a time nor a mark."""

    exit_code = 19


class TargetError(FusejournalError):
    """A target directory that cannot be used."""

    exit_code = 20

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class TargetFullError(TargetError):
    """No space is left where the target is."""

    exit_code = 21


class ImportPausedError(FusejournalError):
    """An import has come to the end of a part: what is imported is made a version of before it
    goes on."""

    exit_code = 50


class ConflictError(FusejournalError):
    """Operations that cannot be carried out on what is there."""

    exit_code = 22


class UndoOverlapError(ConflictError):
    """An undo was carried out whole, but another process changed the same things at that moment."""


class ExportError(FusejournalError):
    """An export that cannot be made, or unmade, as asked."""

    exit_code = 23


class ExportConflictError(ExportError):
    """Another export contradicts the one that is asked for."""

    exit_code = 24

    def __init__(self, where: str, reason: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"{where}: {reason}")


class NoNfsServerError(ExportError):
    """The kernel's NFS server is not installed."""

    exit_code = 25


class WireError(FusejournalError):
    """A peer sent something that cannot be. The connection ends; nothing of it was believed."""

    exit_code = 26


class PeerLostError(WireError):
    """The connection to a peer could not be made, or broke."""

    def __init__(self, where: str, reason: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"{where}: {reason}")


class PeerRefusedError(WireError):
    """The two may not talk: one does not know the other, or will not talk without encryption."""

    def __init__(self, where: str, reason: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"{where}: {reason}")


class PeerMistakenError(PeerRefusedError):
    """The node that answers is not the peer that was paired. ``found`` is empty if it did not
    identify itself."""

    def __init__(self, where: str, expected: str, found: str) -> None:
        self.expected = expected
        self.found = found
        super().__init__(
            where,
            f"is not the peer that was paired: {found or 'another'} answers instead of {expected}; "
            "if it was made anew, remove the peer and pair again",
        )


class ListenError(FusejournalError):
    """No connections can be accepted at an address of this machine."""

    exit_code = 38

    def __init__(self, address: object, reason: str) -> None:
        super().__init__(f"cannot listen on {address}: {reason}")


class PairingError(FusejournalError):
    """Two nodes could not be paired: a wrong or spent code, or a name that is taken."""

    exit_code = 27


class UnknownPeerError(FusejournalError):
    """No peer of that name."""

    exit_code = 28

    def __init__(self, name: str, hint: str = "") -> None:
        self.name = name
        super().__init__(f"no peer {name!r}{hint}")


class HookFailedError(FusejournalError):
    """A program of [hooks] in the configuration has failed, or could not be run."""

    exit_code = 36

    def __init__(self, command: str, reason: str) -> None:
        self.command = command
        self.reason = reason
        super().__init__(f"hook {command!r}: {reason}")


class DemotionRefusedError(FusejournalError):
    """A primary goes on taking changes, because no mirror has all of them."""

    exit_code = 33


class HandoffRefusedError(FusejournalError):
    """A primary stays one, because another node does not take over."""

    exit_code = 37


class PromotionRefusedError(FusejournalError):
    """A mirror may not become the primary, or cannot."""

    exit_code = 32


class UnknownBranchError(FusejournalError):
    """No branch of that name."""

    exit_code = 34

    def __init__(self, name: str, known: list[str]) -> None:
        self.name = name
        there = f"there are {', '.join(known)}" if known else "there is none"
        super().__init__(f"no branch {name!r}: {there}")


class ApplyBrokenError(FusejournalError):
    """An operation was half done and could not be taken back: journal and backing may disagree
    about it. ``number`` is the errno of what could not be done."""

    exit_code = 31

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class ShortWriteError(OSError):
    """The backing took only the first ``written`` bytes of a WRITE."""

    def __init__(self, number: int, written: int) -> None:
        super().__init__(number, os.strerror(number))
        self.written = written


class ScrubFoundError(FusejournalError):
    """A scrub found what is not as it should be, and did not put it right."""

    exit_code = 49


def cause_of(error: BaseException) -> BaseException:
    """Returns the error that ended the process, out of the groups that nurseries wrap it in: one of
    ours before any other."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [cause_of(one) for one in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, FusejournalError)), causes[0])
