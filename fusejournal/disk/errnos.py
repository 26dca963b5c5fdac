"""Errnos in groups, each with one meaning for the caller that gets them."""

import errno

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The disk, or the quota of the file's owner, is full."""
CANNOT_GROW = NO_SPACE | {errno.EFBIG}
"""The same, or a limit to how large files may become: of this process, or of the file system."""
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""No connection can be taken just now: what waits goes on waiting."""
NO_MEANS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""The process has no descriptor or memory left: nothing to do with the disk, and it passes."""
