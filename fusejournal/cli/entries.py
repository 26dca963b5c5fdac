"""Entries as lines for people."""

import pwd
from functools import cache
from typing import Any

import click

from fusejournal.cli import text
from fusejournal.file_operations import FALLOC_KEEP_SIZE, Fallocate, flag_letters
from fusejournal.history.changes import Change
from fusejournal.history.json_values import errno_name
from fusejournal.history.marks import removed_name
from fusejournal.history.query import Match
from fusejournal.operations import CONTENT_KINDS, MOVES, Import, Kind

_COLOURS = {
    **dict.fromkeys((Kind.CREATE, Kind.MKDIR, Kind.SYMLINK, Kind.LINK), "green"),
    **dict.fromkeys((Kind.UNLINK, Kind.RMDIR), "red"),
    **dict.fromkeys(MOVES, "yellow"),
    **dict.fromkeys(CONTENT_KINDS, "cyan"),
    **dict.fromkeys((Kind.EPOCH, Kind.MARK, Kind.CLEAN), "magenta"),
}
_CHANGE_COLOURS = {"A": "green", "D": "red", "R": "yellow", "M": "cyan"}


@cache
def user(uid: int) -> str:
    """The name of *uid*, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def shown_path(path: bytes | None) -> str:
    """A path for people, from the volume's root."""
    return "?" if path is None else "/" + text.name(path)


def changed_path(change: Change) -> str:
    """The letters of *change*, coloured, and the path, or where from and where to."""
    letters = change.letters()
    path = shown_path(change.main_path())
    if "R" in letters:
        path = f"{shown_path(change.old_path)} -> {path}"
    return click.style(f"{letters:<4}", _CHANGE_COLOURS.get(letters[0])) + path


def as_line(match: Match) -> str:
    """One line for people: seq, time, who, what, path, details."""
    entry, (held, void), path, _ = match
    operation = entry.operation
    # What is about no file has no path either.
    about = "" if operation.kind in (Kind.EPOCH, Kind.MARK, Kind.CLEAN) else shown_path(path)
    name = click.style(f"{operation.kind.name.lower():<11}", _COLOURS.get(operation.kind))
    line = (
        f"{entry.seq:>8}  {text.moment(entry.time_ns)}  {user(entry.who.uid):<10} "
        f"{name} {about}{details(match)}"
    )
    if void is not None and not held:
        line += click.style(f"  refused: {errno_name(void)}", "red")
    return line.rstrip()


def details(match: Match) -> str:
    """Returns what the operation did, beyond its path; begins with two blanks, or is empty."""
    entry, outcome, _, new_path = match
    operation: Any = entry.operation
    match operation.kind:
        case Kind.WRITE | Kind.IMPORT_DATA:
            size, void = f"{len(entry.data)} bytes", outcome.void
            if outcome.held and void is not None:
                size = f"{void.written} bytes of {len(entry.data)}, then {errno_name(void)}"
            return f"  {size} at {operation.offset}"
        case Kind.TRUNCATE:
            return f"  to {operation.size} bytes"
        case Kind.FALLOCATE:
            return f"  {_allocation(operation)}"
        case Kind.RENAME:
            how = "<->" if operation.flags & 2 else "->"
            return f"  {how} {shown_path(new_path)}"
        case Kind.WHITEOUT:
            return f"  -> {shown_path(new_path)}, leaving a whiteout"
        case Kind.SYMLINK:
            return f"  -> {text.name(operation.target)}"
        case Kind.CREATE | Kind.MKDIR:
            return f"  mode {operation.mode & 0o7777:04o}"
        case Kind.IMPORT:
            return _import_details(operation)
        case Kind.SETATTR:
            return "  " + ", ".join(_attributes(operation))
        case Kind.SETXATTR | Kind.REMOVEXATTR:
            return f"  {text.name(operation.name)}"
        case Kind.SETFLAGS:
            return f"  {flag_letters(operation.flags)}"
        case Kind.EPOCH:
            return f"{operation.epoch}: {text.line(operation.reason)}"
        case Kind.MARK:
            removed = removed_name(operation)
            return text.line(operation.name if removed is None else f"{removed} is removed")
    return ""


def _allocation(operation: Fallocate) -> str:
    what = "allocated"
    if operation.empties:
        what = "punched" if operation.punches else "zeroed"
    has_choice = not operation.punches
    kept = ", keeping the size" if has_choice and operation.flags & FALLOC_KEEP_SIZE else ""
    return f"{operation.length} bytes at {operation.offset} {what}{kept}"


def _import_details(operation: Import) -> str:
    return f"  mode {operation.mode & 0o7777:04o}, {operation.size} bytes"


def _attributes(operation: Any) -> list[str]:
    found = []
    if operation.mode is not None:
        found.append(f"mode {operation.mode:04o}")
    if operation.uid is not None:
        found.append(f"owner {user(operation.uid)}")
    if operation.gid is not None:
        found.append(f"group {operation.gid}")
    if operation.mtime_ns is not None:
        found.append(f"mtime {text.moment(operation.mtime_ns)}")
    if operation.atime_ns is not None:
        found.append(f"atime {text.moment(operation.atime_ns)}")
    return found
