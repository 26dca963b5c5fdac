"""The options of a mount that the kernel has flags for, whatever the file system: their words, as
in fstab and /proc/mounts, and their bits.

Pure. Source: mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS"; mount(2); the kernel's
fs/namespace.c (path_mount) and fs/proc_namespace.c, which also shows who keeps a flag, the mount or
its file system."""

from collections.abc import Iterable
from typing import Final, get_args

from fusejournal.config import MountFlag

FLAGS: Final[tuple[str, ...]] = get_args(MountFlag)

_BITS: Final = dict(
    zip(FLAGS, (1, 2, 4, 8, 16, 128, 1024, 2048, 1 << 21, 1 << 24, 1 << 25), strict=True)
)
_ACCESS_TIMES: Final = frozenset({"noatime", "relatime", "strictatime"})
"""Flags of which each takes the others away; the kernel's default is ``relatime``."""
_OF_FILE_SYSTEM: Final = frozenset({"ro", "sync", "dirsync", "lazytime"})
REVERSE: Final = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "async": "sync",
    "atime": "noatime",
    "diratime": "nodiratime",
    "norelatime": "relatime",
    "nostrictatime": "strictatime",
    "nolazytime": "lazytime",
}
"""Words that take a flag away."""
_CONTEXTS: Final = ("context=", "fscontext=", "defcontext=", "rootcontext=")


def is_context(word: str) -> bool:
    """Returns True if *word* is a security context, which SELinux takes, of a mount."""
    return word.startswith(_CONTEXTS)


def with_words(flags: Iterable[str], words: Iterable[str]) -> frozenset[str]:
    """Returns *flags*, and what *words* add to them or take away: the last one wins. Words that
    are no flags are passed over."""
    result = set(flags)
    for word in words:
        if word in _BITS:
            if word in _ACCESS_TIMES:
                result -= _ACCESS_TIMES
            result.add(word)
        elif word in REVERSE:
            result.discard(REVERSE[word])
        elif is_context(word):
            result = {one for one in result if one.partition("=")[0] != word.partition("=")[0]}
            result.add(word)
    return frozenset(result)


def bits_of(flags: Iterable[str]) -> int:
    """Returns the bits of *flags* for mount(2), with those that are otherwise left as they are."""
    return sum(_BITS[flag] for flag in _whole(flags))


def seen_in(options: Iterable[str]) -> frozenset[str]:
    """Returns the flags among the *options* of a mount and its file system in mountinfo, which has
    no word for ``strictatime``."""
    found = frozenset(flag for flag in options if flag in _BITS)
    return found if found & _ACCESS_TIMES else found | {"strictatime"}


def are_equal(one: Iterable[str], other: Iterable[str]) -> bool:
    """Returns True if the two come to the same."""
    return _whole(one) == _whole(other)


def differ_in_file_system(one: Iterable[str], other: Iterable[str]) -> bool:
    """Returns True if the two differ in flags that the file system keeps, and not the mount."""
    return bool((_whole(one) ^ _whole(other)) & _OF_FILE_SYSTEM)


def _whole(flags: Iterable[str]) -> frozenset[str]:
    found = frozenset(flag for flag in flags if flag in _BITS)
    return found if found & _ACCESS_TIMES else found | {"relatime"}
