"""Answers to consoles about a volume's versions: their list and store, what the policy makes of
them, the tree of one, the differences between two, protecting and deleting. All else about them
takes its time, and is a job."""

import stat
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

from fusejournal.admin.retention import find_retention
from fusejournal.admin.versions import VolumeVersions
from fusejournal.agent.accounts import account_names
from fusejournal.agent.archives import content_of_record, members_of_version
from fusejournal.agent.command_lines import command_line
from fusejournal.agent.fields import Fields
from fusejournal.agent.zips import archived
from fusejournal.errors import FusejournalError, UsageError
from fusejournal.history.json_values import exact
from fusejournal.node.registry import find_named
from fusejournal.objects.store import StoreError
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.records import InodeRecord
from fusejournal.versions.version_tree import VersionTree

_STORE_SECONDS: Final = 40.0
"""The time after which a console is told that the store does not answer: it waits a minute."""
_NAMES_MAX: Final = 1000
_CHANGES_MAX: Final = 1000
TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
"""The types of files, in words, by the bits of their modes."""


def _patience() -> Callable[[], None]:
    deadline = time.monotonic() + _STORE_SECONDS

    def check() -> None:
        if time.monotonic() > deadline:
            raise FusejournalError("the store of versions does not answer in time")

    return check


def _open(fields: Fields) -> VolumeVersions:
    return VolumeVersions(find_named(fields.text("volume")).name, _patience())


def _no_progress(_: int, __: int | None) -> None:
    pass


def versions(fields: Fields) -> dict[str, Any]:
    """Returns all versions of a volume, the oldest first, and their store; what is wrong with that
    as ``error``. Raises FusejournalError."""
    found = _open(fields)
    reader = found.source.reader
    answer: dict[str, Any] = {
        "versions": [], "unreadable": [], "store": None, "error": None,
        "head_seq": int(found.source.head_seq), "first_seq": int(reader.first_seq),
        "command": command_line("version", "list", found.name),
    }  # fmt: skip
    if not found.state.has_versions:
        answer["error"] = (
            "versions are kept nowhere yet: fusejournal version store init "
            f"{found.name} --store DIR|s3://BUCKET/PREFIX"
        )
        return answer
    try:
        listed = found.all()
        answer["store"] = found.store_facts().to_json()
    except (StoreError, OSError) as error:
        answer["error"] = str(error)
        return answer
    answer["versions"] = [one.to_json() for one in listed.versions]
    answer["unreadable"] = [{"key": one.key, "error": str(one.error)} for one in listed.unreadable]
    return answer


def retention(fields: Fields) -> dict[str, Any]:
    """Returns what becomes of each version by the volume's policy, and when the layer makes and
    prunes next; what is wrong with the store as ``error``. Raises FusejournalError."""
    found = _open(fields)
    answer: dict[str, Any] = {
        "error": None, "now_ns": time.time_ns(),
        "command": command_line("version", "calendar", found.name),
    }  # fmt: skip
    if not found.state.has_versions:
        return {**answer, "error": "versions are kept nowhere yet"}
    try:
        return {**answer, **find_retention(found.name, None, _patience()).to_json()}
    except (StoreError, OSError) as error:
        return {**answer, "error": str(error)}


def tree(fields: Fields) -> dict[str, Any]:
    """Returns a directory of a version: its names from ``after`` on, with what each is. Raises
    NoSuchVersionError, PathNotFoundError, FusejournalError."""
    found = _open(fields)
    listed = found.find(fields.text("version"))
    version = listed.version
    path = found.path(fields.text("path", ""))
    there = VersionTree(BlockReader(found.store()), version.trees)
    own = there.find(path)
    after = fields.text_or_none("after")
    names = there.children(own.fid) if own.type == stat.S_IFDIR else iter(())
    if after is not None:
        raw = after.encode("utf-8", "surrogateescape")
        names = (one for one in names if one[0] > raw)
    shown = list(islice(names, _NAMES_MAX + 1))
    records = [(name, there.record(fid)) for name, fid in shown[:_NAMES_MAX]]
    words = [found.name, *([exact(path)] if path else [])]
    options = [("--to-version", version.shown_name), ("--target", "DIR")]
    return {
        "path": exact(path),
        "version": listed.to_json(),
        "is_directory": own.type == stat.S_IFDIR,
        "file": _describe(path.rpartition(b"/")[2], own),
        "names": [_describe(name, record) for name, record in records],
        "more": len(shown) > _NAMES_MAX,
        "users": account_names(one.uid for one in (own, *(record for _, record in records))),
        "command": command_line("restore", *words, options=options),
    }


def _describe(name: bytes, record: InodeRecord) -> dict[str, Any]:
    return {
        "name": exact(name),
        "fid": int(record.fid),
        "type": TYPES.get(record.type, "unknown"),
        "size": record.size,
        "mtime_ns": record.mtime_ns,
        "uid": record.uid,
        "gid": record.gid,
        "target": exact(record.target) if record.target is not None else None,
    }


def content(fields: Fields) -> Iterator[bytes]:
    """Yields the bytes of a file of a version, in order. Raises NoSuchVersionError, UsageError,
    PathNotFoundError, StoreError, FusejournalError."""
    found = _open(fields)
    version = found.find(fields.text("version")).version
    path = found.path(fields.text("path", ""))
    there = VersionTree(BlockReader(found.store()), version.trees)
    record = there.find(path)
    if record.type != stat.S_IFREG:
        word = TYPES.get(record.type, "unknown")
        raise UsageError(f"/{exact(path)} is no file but a {word}: restore it instead")
    yield from content_of_record(there, record)


def archive(fields: Fields) -> Iterator[bytes]:
    """Yields the bytes of a directory of a version, as an archive: ``format`` is "tar" or "zip".
    Raises NoSuchVersionError, UsageError, PathNotFoundError, StoreError, FusejournalError."""
    found = _open(fields)
    version = found.find(fields.text("version")).version
    path = found.path(fields.text("path", ""))
    tree = VersionTree(BlockReader(found.store()), version.trees)
    return archived(members_of_version(tree, path), fields.text("format", "tar"))


def difference(fields: Fields) -> dict[str, Any]:
    """Returns what differs between two versions, by path. Raises NoSuchVersionError, UsageError,
    FusejournalError."""
    found = _open(fields)
    old, new = fields.text("old"), fields.text("new")
    path = fields.text_or_none("path")
    changes = found.changes(old, new, path, _no_progress)
    words = ["version", "diff", found.name, old, new, *([path] if path else [])]
    return {
        "changes": [{**one.to_json(), "letters": one.letters()} for one in changes[:_CHANGES_MAX]],
        "count": len(changes),
        "command": command_line(*words),
    }


def protect(fields: Fields) -> dict[str, Any]:
    """Protects a version from being deleted; ``off``: no longer. Raises NoSuchVersionError,
    StoreError, FusejournalError."""
    found, wanted, is_off = _open(fields), fields.text("version"), fields.flag("off")
    name = found.protect(wanted, on=not is_off)
    words = ("version", "protect", found.name, wanted)
    return {
        "version": name,
        "protected": not is_off,
        "command": command_line(*words, options=[("--off", is_off)]),
    }


def delete(fields: Fields) -> dict[str, Any]:
    """Deletes a version, which ``confirm`` has to name once more, by its name, seq or key. Raises
    UsageError, also where it is protected or the journal begins with it; NoSuchVersionError,
    StoreError, FusejournalError."""
    found, wanted = _open(fields), fields.text("version")
    key, name = found.key_to_delete(wanted)
    accepted = {wanted, key}
    for one in found.all().versions:
        if one.version.key == key:
            accepted |= {one.version.shown_name, str(one.version.seq)}
    if fields.text("confirm", "") not in accepted:
        raise UsageError(f"version {name} would be gone for ever: confirm it by its name or seq")
    found.delete(wanted)
    return {"version": name, "command": command_line("version", "delete", found.name, wanted)}
