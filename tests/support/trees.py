"""Comparing trees: everything that replay has to bring back, and a tree made from a journal
alone."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any
from uuid import UUID

from fusejournal.backing.fid_tag import HIDDEN_XATTRS
from fusejournal.config import StoreConfig
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria
from fusejournal.journal.base import load_base
from fusejournal.journal.reader import JournalReader
from fusejournal.replay.fold import Fold, carry_out
from fusejournal.replay.replay import Replay
from fusejournal.replay.target import Target
from fusejournal.types import ROOT_FID, Seq
from fusejournal.versions.base_tree import open_base_tree

Image = dict[bytes, dict[str, Any]]


def image(root: Path | str, *, times: bool = True) -> Image:
    """The tree under *root*: path -> attributes and content. Hard links show as a group of
    paths."""
    found: Image = {}
    groups: dict[int, list[bytes]] = {}
    base = os.fsencode(root)
    todo = [base]
    while todo:
        path = todo.pop()
        info = os.lstat(path)
        name = os.path.relpath(path, base)
        item: dict[str, Any] = {
            "mode": oct(info.st_mode),
            "owner": (info.st_uid, info.st_gid),
            "xattrs": {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if os.fsencode(key) not in HIDDEN_XATTRS
            },
        }
        if times:
            item["mtime"] = info.st_mtime_ns
        if stat.S_ISDIR(info.st_mode):
            todo += [os.path.join(path, child) for child in os.listdir(path)]
        else:
            item["nlink"] = info.st_nlink
            if info.st_nlink > 1:
                groups.setdefault(info.st_ino, []).append(name)
        if stat.S_ISREG(info.st_mode):
            item["size"] = info.st_size
            with open(path, "rb") as file:
                item["content"] = hashlib.file_digest(file, "sha256").hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            item["target"] = os.readlink(path)
        elif stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode):
            item["rdev"] = info.st_rdev
        found[name] = item
    for names in groups.values():
        for name in names:
            found[name]["links"] = sorted(names)
    return found


def difference(one: Image, other: Image) -> str:
    """The first few differences in words; empty for equal trees."""
    lines = [
        f"{path!r}: {one.get(path)} != {other.get(path)}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]
    return "\n".join(lines[:10])


def fids(root: Path) -> dict[bytes, int]:
    """path -> st_ino for everything under *root*."""
    base = os.fsencode(root)
    found = {b".": os.lstat(base).st_ino}
    for directory, directories, files in os.walk(base):
        for name in directories + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, base)] = os.lstat(path).st_ino
    return found


def make_small_tree(base: Path) -> None:
    """Make *base*: two files, one of them in a directory with an mtime of its own."""
    (base / "sub").mkdir(parents=True)
    (base / "f").write_text("precious")
    (base / "sub/g").write_text("too")
    os.utime(base / "sub", ns=(5, 5))


def rebuild(state: Path, target: Path, uuid: UUID) -> None:
    """Replay the whole journal below *state* into the empty directory *target*."""
    reader = JournalReader(state / "journal", uuid)
    head_seq, _ = reader.head()
    if (base := load_base(state)) is not None:
        # What it begins with is in a store, and nothing of that can be replayed.
        reader.begin_behind(open_base_tree(state, base, StoreConfig))
        with Target(target, {"test": str(target)}) as goal:
            goal.stage.clear_acls()
            steps = Fold(Lookup(reader), Seq(head_seq + 1)).tree(ROOT_FID)
            carry_out(goal, steps, lambda done, total: None)
            goal.finish()
        return
    replay = Replay(Lookup(reader), Criteria(to_seq=Seq(head_seq + 1)))
    with Target(target, {"test": str(target)}) as goal:
        for result in replay.run(goal, lambda done, total: None):
            assert result.conflict is None, result
        goal.finish()
