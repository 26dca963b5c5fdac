"""Nodes of earlier releases: the program itself, where the history is there, and what a pair of
them left, kept as text. Names are Latin-1 there, a character a byte."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.disk import syscalls
from tests.golden.files import from_rows, to_rows
from tests.support.mirrors import Node

HERE = Path(__file__).parent
_TOP = HERE.parent.parent

COMMITS = {"0.1.0": "042501bc5fe890e3ff75d809c04085c55161f958"}
"""The last commit of each release that had no tag."""

CONFIG = """
[journal]
segment_entries = 256
compress_level = 19
[log]
level = "warning"
"""
"""So that there is a compressed segment, with an index, and few bytes to keep."""

_TAG_BYTES = 24
"""The part of a file's mark before its handle: the volume's UUID and the fid."""
_CACHES = frozenset({"catalog", "control.sock", "lock", "log", "connection"})
"""Files that the next start makes anew."""


class NoHistoryError(Exception):
    """The checkout does not have the release's commit."""


def unpack(release: str, directory: Path) -> Path:
    """The program of *release*, in *directory*. Raises NoHistoryError."""
    command = ["git", "archive", COMMITS[release], "fusejournal"]
    done = subprocess.run(command, cwd=_TOP, capture_output=True)
    if done.returncode != 0:
        raise NoHistoryError(f"the history of {release} is not here")
    directory.mkdir()
    subprocess.run(["tar", "-x", "-C", directory], input=done.stdout, check=True)
    return directory


def run_release(node: Node, program: Path | None) -> None:
    """Let *node* run the program in *program* from its next start on; None: the one of today."""
    node.environment.pop("PYTHONPATH", None)
    node.prefix = ()
    if program is not None:
        node.environment["PYTHONPATH"] = str(program)
        node.prefix = node.host.prefix  # a process of its own: a forked one has today's loaded


def program_of(node: Node) -> Path:
    """The path of the program that *node* runs."""
    command = [sys.executable, "-c", "import fusejournal; print(fusejournal.__path__[0])"]
    done = subprocess.run(
        command, env=node.environment, cwd="/", capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip()).parent


def work(root: Path) -> None:
    """A tree with a file of each kind in *root*, and a past behind it."""
    (root / "d").mkdir(0o2750)
    for number in range(300):  # more entries than a segment has
        (root / "many").mkdir(exist_ok=True)
        (root / "many" / f"{number}").touch()
        if number >= 5:
            (root / "many" / f"{number - 5}").unlink()
    (root / "d" / "file").write_bytes(b"content of a file\n" * 10)
    os.chown(root / "d" / "file", 1000, 1001)
    os.chmod(root / "d" / "file", 0o640)
    os.setxattr(root / "d" / "file", "user.key", b"value")
    os.link(root / "d" / "file", root / "hard link")
    (root / "soft").symlink_to("d/file")
    os.mkfifo(root / "fifo", 0o600)
    (root / "sparse").write_bytes(b"begin")
    os.truncate(root / "sparse", 1 << 20)
    (root / "renamed").write_text("moved over another")
    (root / "replaced").write_text("gone")
    (root / "renamed").rename(root / "replaced")
    os.mkdir(os.fsencode(root) + b"/odd \xff\n")
    os.utime(root / "d", ns=(10**18, 10**18 + 7))


# -- what a release left ---------------------------------------------------------------------------


def dump(node: Node) -> dict[str, Any]:
    """All that the stopped *node* left, but caches."""
    state: dict[str, Any] = {}
    for path in sorted(node.state.rglob("*")):
        name = str(path.relative_to(node.state))
        if path.is_file() and path.relative_to(node.state).parts[0] not in _CACHES:
            state[name] = _content(path.read_bytes())
    root = os.fsencode(node.backing)
    paths = [root]
    for above, directories, files in os.walk(root):
        paths += sorted(os.path.join(above, one) for one in directories + files)
    first_names: dict[int, str] = {}
    tree = {}
    for place in paths:
        name = os.path.relpath(place, root).decode("latin-1")
        tree[name] = _file(place, name, first_names)
    return {"address": node.host.address, "state": state, "tree": tree}


def _content(content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        text = "\0"
    if text.replace("\n", "").isprintable():
        return {"text": text.splitlines(keepends=True)}
    return {"bytes": len(content), "content": to_rows(content)}


def _file(path: bytes, name: str, first_names: dict[int, str]) -> dict[str, Any]:
    info = os.lstat(path)
    if info.st_ino in first_names:
        return {"link": first_names[info.st_ino]}
    first_names[info.st_ino] = name
    mark = os.getxattr(path, FID_XATTR, follow_symlinks=False)
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    handle = syscalls.handle_of(fd)
    os.close(fd)
    assert mark[_TAG_BYTES:].startswith(handle)
    found: dict[str, Any] = {
        "mode": oct(info.st_mode),
        "owner": [info.st_uid, info.st_gid],
        "mtime_ns": info.st_mtime_ns,
        "mark": [mark[:_TAG_BYTES].hex(), mark[_TAG_BYTES + len(handle) :].hex()],
        "xattrs": {
            key: os.getxattr(path, key, follow_symlinks=False).hex()
            for key in os.listxattr(path, follow_symlinks=False)
            if key != FID_XATTR
        },
    }
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            found.update(_content(file.read().rstrip(b"\0")), bytes=info.st_size)
    elif stat.S_ISLNK(info.st_mode):
        found["target"] = os.fsdecode(os.readlink(path))
    return found


def _bytes(raw: dict[str, Any]) -> bytes:
    content = "".join(raw["text"]).encode() if "text" in raw else from_rows(raw["content"])
    return content.ljust(raw.get("bytes", 0), b"\0")


def kept(release: str) -> Any:
    """The volumes that were kept of *release*."""
    return json.loads((HERE / f"release-{release}.json").read_text())


def restore(raw: Any, node: Node) -> None:
    """Give *node* the state directory and the backing in *raw*; files have the handles that they
    have here."""
    node.state.mkdir(mode=0o700, exist_ok=True)
    for name, content in raw["state"].items():
        path = node.state / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(_bytes(content))
        path.chmod(0o600)
    root = os.fsencode(node.backing)
    for name, one in raw["tree"].items():
        _restore_file(os.path.join(root, _path(name)), one, root)
    for name, one in reversed(raw["tree"].items()):
        if "link" not in one:
            times = one["mtime_ns"], one["mtime_ns"]
            os.utime(os.path.join(root, _path(name)), ns=times, follow_symlinks=False)


def _path(name: str) -> bytes:
    return name.encode("latin-1")


def _restore_file(path: bytes, one: dict[str, Any], root: bytes) -> None:
    if "link" in one:
        os.link(os.path.join(root, _path(one["link"])), path, follow_symlinks=False)
        return
    mode = int(one["mode"], 8)
    if stat.S_ISDIR(mode):
        os.makedirs(path, exist_ok=True)
    elif stat.S_ISLNK(mode):
        os.symlink(one["target"], path)
    else:
        os.mknod(path, mode)
    if stat.S_ISREG(mode):
        with open(path, "wb") as file:
            file.write(_bytes({**one, "bytes": 0}))
            file.truncate(one["bytes"])
    os.chown(path, *one["owner"], follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        os.chmod(path, stat.S_IMODE(mode))
    for key, value in one["xattrs"].items():
        os.setxattr(path, key, bytes.fromhex(value), follow_symlinks=False)
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    handle = syscalls.handle_of(fd)
    os.close(fd)
    before, after = map(bytes.fromhex, one["mark"])
    os.setxattr(path, FID_XATTR, before + handle + after, follow_symlinks=False)


def fids_of(raw: Any) -> dict[bytes, int]:
    """path -> fid, as the release had given them."""
    found = {}
    for name, one in raw["tree"].items():
        mark = bytes.fromhex(raw["tree"][one.get("link", name)]["mark"][0])
        found[_path(name)] = int.from_bytes(mark[16:24], "little")
    return found


def await_compressed(node: Node, seconds: float = 30) -> None:
    """Wait until the running *node* has compressed a segment and made its index."""
    deadline = time.monotonic() + seconds
    journal = node.state / "journal"
    while not (list(journal.glob("*.fjz")) and list(journal.glob("*.fjx"))):
        assert time.monotonic() < deadline, sorted(journal.iterdir())
        time.sleep(0.1)
