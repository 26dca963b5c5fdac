"""The attributes that the root directory of a target is to have at the end, while it is still
closed to all but root: mode, owner and access ACL, as the operations would have left them."""

import os
from stat import S_IMODE
from typing import Any, NamedTuple

from fusejournal.disk import syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR


class RootAttributes(NamedTuple):
    """The attributes that the target's root directory is to have at the end."""

    mode: int
    uid: int
    gid: int
    acl: bytes | None

    @classmethod
    def of(cls, fd: int) -> "RootAttributes":
        """Returns those of the directory that *fd* is open on. Raises OSError."""
        found = os.fstat(fd)
        try:
            acl = os.getxattr(fd, ACCESS_ACL_XATTR)
        except OSError as error:
            if not syscalls.missing(error):
                raise
            acl = None
        return cls(S_IMODE(found.st_mode), found.st_uid, found.st_gid, acl)

    def to_json(self) -> dict[str, Any]:
        """Returns them for :meth:`from_json`."""
        return {**self._asdict(), "acl": None if self.acl is None else self.acl.hex()}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "RootAttributes":
        """Returns what :meth:`to_json` was asked of."""
        acl = kept["acl"]
        acl = None if acl is None else bytes.fromhex(acl)
        return cls(kept["mode"], kept["uid"], kept["gid"], acl)

    def set(self, fd: int) -> None:
        """Give them to the directory that *fd* is open on. Raises OSError."""
        os.fchown(fd, self.uid, self.gid)
        if self.acl is not None:
            os.setxattr(fd, ACCESS_ACL_XATTR, self.acl)
        os.fchmod(fd, self.mode)
