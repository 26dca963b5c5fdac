"""Errors of the operating system in words, for a page on another machine: what, where, and, where
the disk is full, what to do."""

import os

from fusejournal.disk.errnos import NO_SPACE


def disk_error_words(error: OSError) -> str:
    """Returns *error* in words. One of a descriptor has no file's name."""
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    words = f"{where}{error.strerror or error}"
    if error.errno in NO_SPACE:
        place = "on the file system that it is on" if where else "on that machine's file systems"
        words += f": make room {place}, then try again"
    return words
