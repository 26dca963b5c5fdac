"""The results that carrying out an operation can have: an object made, the beginning of a WRITE, or
half of something, which must not be. Shared by the modules of the applier (apply.py)."""

import errno

from fusejournal.errors import ApplyBrokenError


class Made:
    """Handle and inode number of the object that an operation made; empty and 0 for the others."""

    __slots__ = ("handle", "ino")

    def __init__(self, handle: bytes = b"", ino: int = 0) -> None:
        self.handle = handle
        self.ino = ino


NOTHING_MADE = Made()


class MustWork:
    """``with MustWork(what)``: the operation is done but for this, and a refusal now leaves it
    half done. (A generator would cost a microsecond in every operation.)"""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise ApplyBrokenError(
                f"{self._what} could not be set: {error}", error.errno or errno.EIO
            ) from error
