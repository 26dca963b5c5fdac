"""The clients' side: people who work through NFS in processes of their own, what each answer was,
and what a journal has to say of it."""

import errno
import multiprocessing
import os
import re
import stat
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fusejournal.history.json_values import match_to_json
from fusejournal.history.lookup import Lookup
from fusejournal.history.query import Criteria, find
from fusejournal.journal.reader import JournalReader
from fusejournal.node.state_dir import load_state
from fusejournal.types import Seq
from tests.support.layer import Layer

NAME_OPERATIONS = frozenset(("create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename"))

_SILLY = re.compile(r"\.nfs[0-9a-f]{16,}")
_PROCESSES = multiprocessing.get_context("fork")
# Positions in /proc/net/rpc/nfsd: fs/nfsd/stats.c; the numbers are those of RFC 1813 and RFC 7530.
_OPERATIONS_3 = {
    "setattr": 2, "write": 7, "create": 8, "mkdir": 9, "symlink": 10, "mknod": 11, "remove": 12,
    "rmdir": 13, "rename": 14, "link": 15,
}  # fmt: skip
_OPERATIONS_4 = {
    "create": 6, "link": 11, "remove": 28, "rename": 29, "setattr": 34, "write": 38,
}  # fmt: skip


class Person:
    """A process with these ids that does what it is asked, one thing after the other; open files
    and locks are its own. Use as a context manager; its end ends the process."""

    def __init__(
        self, uid: int = 0, gid: int | None = None, groups: Sequence[int] = (), umask: int = 0o022
    ) -> None:
        self.uid = uid
        self.gid = uid if gid is None else gid
        self._pipe, far = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(
            target=_serve, args=(far, self.uid, self.gid, list(groups), umask), daemon=True
        )
        self._process.start()
        far.close()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> "Person":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """kill -9: the kernel closes its files and gives its locks back."""
        self._process.kill()
        # A process that waits for a server that does not answer ends when its mount is taken away.
        self._process.join(10)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have *function*, which must be importable, called there; returns or raises what it
        does."""
        self.begin(function, *arguments)
        return self.end()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """The same without waiting for it: :meth:`end` does."""
        self._pipe.send((function, arguments))

    def is_busy(self) -> bool:
        """True if what was begun is not over."""
        return not self._pipe.poll()

    def end(self) -> Any:
        """Waits for it. Returns its result."""
        result, error, where = self._pipe.recv()
        if error is not None:
            error.add_note(where)
            raise error
        return result


def _serve(pipe: Any, uid: int, gid: int, groups: list[int], umask: int) -> None:
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)
    os.umask(umask)
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send((function(*arguments), None, ""))
        except Exception as error:
            pipe.send((None, error, traceback.format_exc()))


def named(error: OSError) -> str:
    """ENOENT and the like."""
    return errno.errorcode[error.errno or 0]


class Deeds:
    """The deeds of a user below *root*: each answer, and the changes of names that the journal must
    tell of, in order. What refuses is an answer like any other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.answers: list[tuple[str, Any]] = []
        self.changes: list[tuple[str, ...]] = []

    def at(self, name: str | bytes) -> Path:
        """The path of *name*."""
        return self.root / os.fsdecode(name)

    def ask(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call *function*; keep what it answers, or which error."""
        try:
            answer = function(*arguments)
        except OSError as error:
            answer = error
        self.answers.append((what, named(answer) if isinstance(answer, OSError) else answer))
        return answer

    def _change(self, change: tuple[str, ...], function: Callable[..., Any], *args: Any) -> bool:
        answer = self.ask(" ".join(map(repr, change)), function, *args)
        done = not isinstance(answer, OSError)
        if done:
            self.changes.append(change)
        return done

    def mkdir(self, name: str, mode: int = 0o777) -> bool:
        """mkdir(2). This and the following return whether it was done."""
        return self._change(("mkdir", name), os.mkdir, self.at(name), mode)

    def create(self, name: str | bytes, mode: int = 0o666, content: bytes = b"") -> bool:
        """A new regular file with *content*."""
        change = ("create", os.fsdecode(name))
        return self._change(change, _create, self.at(name), mode, content)

    def mknod(self, name: str, mode: int, device: int = 0) -> bool:
        """mknod(2)."""
        return self._change(("create", name), os.mknod, self.at(name), mode, device)

    def symlink(self, target: str, name: str) -> bool:
        """symlink(2)."""
        return self._change(("symlink", name), os.symlink, target, self.at(name))

    def link(self, name: str, new: str) -> bool:
        """link(2)."""
        return self._change(("link", new), _link, self.at(name), self.at(new))

    def unlink(self, name: str) -> bool:
        """unlink(2)."""
        return self._change(("unlink", name), os.unlink, self.at(name))

    def rmdir(self, name: str) -> bool:
        """rmdir(2)."""
        return self._change(("rmdir", name), os.rmdir, self.at(name))

    def rename(self, name: str, new: str) -> bool:
        """rename(2)."""
        return self._change(("rename", name, new), os.rename, self.at(name), self.at(new))

    def write(self, name: str, offset: int, data: bytes, flags: int = 0) -> None:
        """Open it, write *data*, close it: then the server has it."""
        self.ask(f"write {name} {offset} {len(data)}", write, self.at(name), offset, data, flags)

    def read(self, name: str, offset: int = 0, size: int = 1 << 20) -> None:
        """Open it and read."""
        self.ask(f"read {name} {offset} {size}", read, self.at(name), offset, size)

    def look(self, name: str) -> None:
        """Notes what stat(2) says, but for what differs between two equal files."""
        self.ask(f"stat {name}", look, self.at(name))


def _create(path: Path, mode: int, content: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        assert os.write(fd, content) == len(content)
    finally:
        os.close(fd)


def _link(path: Path, new: Path) -> None:
    os.link(path, new, follow_symlinks=False)


def write(path: Path, offset: int, data: bytes, flags: int = 0) -> int:
    """Open, write at *offset*, close."""
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        return os.pwrite(fd, data, offset) if not flags & os.O_APPEND else os.write(fd, data)
    finally:
        os.close(fd)


def read(path: Path, offset: int = 0, size: int = 1 << 20) -> bytes:
    """Open, read at *offset*, close."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def look(path: Path) -> tuple[Any, ...]:
    """Mode, owner, and what a directory's backing may answer as it likes: links and size; and the
    time, which is worth comparing only where a process set it to one of the past."""
    info = os.lstat(path)
    words: tuple[Any, ...] = (oct(info.st_mode), info.st_uid, info.st_gid)
    if not stat.S_ISDIR(info.st_mode):
        words += (info.st_nlink, info.st_size, info.st_rdev)
    return words + ((info.st_mtime_ns,) if info.st_mtime_ns < 1_600_000_000 * 10**9 else ())


def entries(layer: Layer, after_seq: int) -> list[dict[str, Any]]:
    """The entries after *after_seq* as ``fusejournal log --json`` tells them, without the cost of
    starting it, and with the client's own names for removed files replaced by ``.nfs``."""
    reader = JournalReader(layer.state / "journal", load_state(layer.state).uuid)
    found = [match_to_json(match) for match in find(Lookup(reader), Criteria(Seq(after_seq + 1)))]
    for entry in found:
        for key in ("path", "new_path"):
            if entry.get(key) is not None:
                entry[key] = _SILLY.sub(".nfs", entry[key])
    return found


def name_changes(found: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The changes of names among *found* that were not refused, as :class:`Deeds` keeps them."""
    changes = []
    for entry in found:
        if entry["op"] in NAME_OPERATIONS and "refused" not in entry:
            paths = (entry["path"], entry["new_path"]) if "new_path" in entry else (entry["path"],)
            changes.append((entry["op"], *paths))
    return changes


def told(entry: dict[str, Any], since_ns: int) -> str:
    """An entry in words: the operation, its path and what it sets. Times since *since_ns* are
    "now"; whole seconds are a client's own business, the verifier of an exclusive creation."""
    words = [entry["op"], entry["path"]]
    match entry["op"]:
        case "create" | "mkdir":
            words.append(f"{stat.S_IMODE(entry['mode']):o} {entry['new_uid']}:{entry['new_gid']}")
        case "symlink":
            words.append(f"-> {entry['target']} {entry['new_uid']}:{entry['new_gid']}")
        case "rename":
            words.append(f"-> {entry['new_path']}")
        case "write":
            words.append(f"{entry['offset']}+{entry['bytes']}")
        case "truncate":
            words.append(f"{entry['size']}")
        case "setxattr" | "removexattr":
            words.append(entry["name"])
        case "setattr":
            words += _attributes(entry, since_ns)
    if "refused" in entry:
        words.append(entry["refused"])
    return " ".join(words)


def _attributes(entry: dict[str, Any], since_ns: int) -> Iterator[str]:
    if entry["mode"] is not None:
        yield f"mode {entry['mode']:o}"
    for key in ("new_uid", "new_gid"):
        if entry[key] is not None:
            yield f"{key.removeprefix('new_')} {entry[key]}"
    for key in ("atime_ns", "mtime_ns"):
        if (time_ns := entry[key]) is not None:
            is_now = since_ns <= time_ns <= time.time_ns()
            text = "now" if is_now else str(time_ns) if time_ns % 10**9 else "?"
            yield f"{key.removesuffix('_ns')} {text}"


def nfsd_counts(version: str) -> dict[str, int]:
    """Counts the changing operations of each kind that nfsd has been asked for since it was
    loaded."""
    lines = Path("/proc/net/rpc/nfsd").read_text().splitlines()
    words = {line.split()[0]: line.split()[2:] for line in lines}
    if version == "3":
        return {name: int(words["proc3"][at]) for name, at in _OPERATIONS_3.items()}
    return {name: int(words["proc4ops"][at]) for name, at in _OPERATIONS_4.items()}
