"""The kinds of entries, as numbers: what a journal's payload begins with."""

from enum import IntEnum


class Kind(IntEnum):
    """The kinds of entries. The numbers are in every journal ever written."""

    CREATE = 1
    MKDIR = 2
    SYMLINK = 3
    LINK = 4
    UNLINK = 5
    RMDIR = 6
    RENAME = 7
    WRITE = 8
    TRUNCATE = 9
    SETATTR = 10
    SETXATTR = 11
    REMOVEXATTR = 12
    IMPORT = 13
    IMPORT_DATA = 14
    IMPORT_LINK = 15
    VOID = 16
    EPOCH = 17
    MARK = 18
    CLEAN = 19
    WHITEOUT = 20
    FALLOCATE = 21
    SETFLAGS = 22
