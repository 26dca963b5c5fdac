"""The whole range of operations through NFS clients: as on a plain export of ext4, and each in the
journal once."""

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fusejournal.disk import calls
from fusejournal.file_operations import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from tests.support.guest.client import (
    Person,
    entries,
    look,
    name_changes,
    named,
    nfsd_counts,
    read,
    told,
    write,
)
from tests.support.guest.scenes import BUSY_REQUESTS, GROUPS, SCENES, busy, perform
from tests.support.guest.server import NfsServer, drop_caches, wait_until
from tests.support.guest.sites import Export, Site, Sites, check_replay, exported_twins
from tests.support.layer import Layer
from tests.support.trees import Image, difference, image
from tests.support.users import ANOTHER, SOMEBODY

pytestmark = pytest.mark.guest

NOBODY = 65534
_PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


def without_xattrs(tree: Image) -> Image:
    """For a client does not show what the server keeps in them."""
    return {path: {k: v for k, v in item.items() if k != "xattrs"} for path, item in tree.items()}


@pytest.mark.parametrize(
    ("filesystem", "export"),
    [
        ("ext4", Export("sync", "no_root_squash")),
        ("ext4", Export("async", "root_squash")),
        ("xfs", Export("sync", "no_root_squash")),
        ("btrfs", Export("async", "no_root_squash")),
    ],
    ids=str,
)
def test_same_work_as_on_a_plain_export(sites: Sites, export: Export, filesystem: str) -> None:
    layer, volume, plain = sites
    after_seq = layer.head_seq()
    for uid, scene in SCENES:
        with Person(uid, GROUPS[uid][0], GROUPS[uid][1:]) as person:
            expected, _ = person.ask(perform, scene, plain.client)
            answers, changes = person.ask(perform, scene, volume.client)
        assert answers == expected
        found = entries(layer, after_seq)
        after_seq = found[-1]["seq"]
        assert name_changes(found) == changes
        ids = (uid, GROUPS[uid][0])
        if uid == 0 and export.squash == "root_squash":
            ids = (NOBODY, NOBODY)
        assert {(entry["uid"], entry["gid"]) for entry in found} == {ids}
    drop_caches()
    served = image(volume.served)
    assert not difference(image(layer.backing), served)
    assert not difference(image(volume.served, times=False), image(plain.served, times=False))
    if export.squash == "no_root_squash":
        seen = without_xattrs(served)
        assert not difference(without_xattrs(image(volume.client)), seen)
        assert not difference(without_xattrs(image(volume.other)), seen)
    check_replay(layer, layer.base / "rebuilt")
    if filesystem == "ext4":
        one, other = os.statvfs(volume.client), os.statvfs(plain.client)
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
            assert getattr(one, field) == getattr(other, field), field


def test_every_request_is_in_the_journal_once(volume: Layer, site: Site, version: str) -> None:
    after_seq = volume.head_seq()
    before = nfsd_counts(version)
    people = [Person(uid, uid + 1000) for uid in (1000, 1001, 1002)]
    for number, person in enumerate(people):
        person.begin(perform, busy, site.other if number else site.client)
    changes = [person.end()[1] for person in people]
    after = nfsd_counts(version)
    found = entries(volume, after_seq)
    for person, done in zip(people, changes, strict=True):
        person.kill()
        own = [entry for entry in found if (entry["uid"], entry["gid"]) == (person.uid, person.gid)]
        assert name_changes(own) == done
    # What was done, what nfsd was asked for, and what the journal has, are the same.
    asked = {name: after[name] - before[name] for name in after}
    assert asked == {name: 3 * number for name, number in BUSY_REQUESTS[version].items()}
    assert len(found) == 3 * (sum(BUSY_REQUESTS["3"].values()))
    assert not [entry for entry in found if "refused" in entry]
    # And so do the commands.
    assert volume.entries()[after_seq:] == entries(volume, after_seq)
    (volume.base / "replayed").mkdir()
    volume.run("replay", str(volume.mountpoint), str(volume.base / "replayed"))
    digests = [
        volume.run("digest", str(tree)).stdout.split()[0]
        for tree in (volume.mountpoint, volume.base / "replayed")
    ]
    assert digests[0] == digests[1]


def _open(path: Path, flags: int, mode: int = 0) -> None:
    os.close(os.open(path, flags, mode))


def _utime(path: Path, atime_ns: int, mtime_ns: int) -> None:
    os.utime(path, ns=(atime_ns, mtime_ns))


def _remove_open(path: Path) -> None:
    with open(path, "rb"):
        path.unlink()


_NEW = os.O_CREAT | os.O_WRONLY
_EXCLUSIVE = {
    # The server keeps the client's verifier in the times until the client sets them, and NFSv3 has
    # no place for the mode in such a request.
    "3": ["create ~/x 0 =", "setattr ~/x atime ? mtime ?",
          "setattr ~/x mode 640 atime now mtime now"],
    "4.2": ["create ~/x 640 =", "setattr ~/x atime ? mtime ?", "setattr ~/x atime now mtime now"],
}  # fmt: skip
_TRUNCATED = "setattr ~/f mtime now"
"""nfsd sends the time along with a new size."""

_STEPS: tuple[tuple[Callable[..., Any], tuple[Any, ...], list[str]], ...] = (
    (os.mkdir, (Path(),), ["mkdir ~ 755 ="]),
    (os.mkdir, (Path("d"), 0o711), ["mkdir ~/d 711 ="]),
    (_open, (Path("f"), _NEW, 0o666), ["create ~/f 644 ="]),
    (_open, (Path("x"), _NEW | os.O_EXCL, 0o640), []),
    (write, (Path("f"), 0, b"x" * 5000), ["write ~/f 0+5000"]),
    # A client writes whole pages where it knows the rest.
    (write, (Path("f"), 4200, b"y"), ["write ~/f 4096+904"]),
    (write, (Path("f"), 0, b"!", os.O_APPEND), ["write ~/f 4096+905"]),
    (os.truncate, (Path("f"), 3), ["truncate ~/f 3", _TRUNCATED]),
    (_open, (Path("f"), os.O_WRONLY | os.O_TRUNC), ["truncate ~/f 0", _TRUNCATED]),
    (os.chmod, (Path("f"), 0o640), ["setattr ~/f mode 640"]),
    (os.chown, (Path("f"), -1, 3000), ["setattr ~/f gid 3000"]),
    (
        _utime,
        (Path("f"), 10**9 + 5, 10**9 + 6),
        [f"setattr ~/f atime {10**9 + 5} mtime {10**9 + 6}"],
    ),
    (os.utime, (Path("f"),), ["setattr ~/f atime now mtime now"]),
    (os.symlink, ("anywhere", Path("s")), ["symlink ~/s -> anywhere ="]),
    (os.link, (Path("f"), Path("d/l")), ["link ~/d/l"]),
    (os.rename, (Path("d/l"), Path("d/m")), ["rename ~/d/l -> ~/d/m"]),
    (os.rename, (Path("x"), Path("s")), ["rename ~/x -> ~/s"]),
    (os.mkfifo, (Path("fifo"), 0o666), ["create ~/fifo 644 ="]),
    (_remove_open, (Path("s"),), ["rename ~/s -> ~/.nfs", "unlink ~/.nfs"]),
    (os.unlink, (Path("d/m"),), ["unlink ~/d/m"]),
    (os.rmdir, (Path("d"),), ["rmdir ~/d"]),
)


def test_entries_tell_what_was_done(volume: Layer, site: Site, version: str) -> None:
    after_seq: int = volume.head_seq()
    since_ns = time.time_ns()
    done: list[tuple[int, Person, list[str]]] = []
    with ExitStack() as stack:
        people = [
            stack.enter_context(Person(uid, gid, (3000,)))
            for uid, gid in ((SOMEBODY, 2000), (ANOTHER, 2002), (0, 0))
        ]
        for function, arguments, expected in _STEPS:
            for person in people:
                home = site.client / f"{person.uid}:{person.gid}"
                person.ask(function, *(home / a if isinstance(a, Path) else a for a in arguments))
                if function is _remove_open:
                    wait_until("the removal", lambda: not _has_silly(home))  # noqa: B023
                done.append((volume.head_seq(), person, expected or _EXCLUSIVE[version]))
    found = entries(volume, after_seq)
    for head_seq, person, expected in done:
        own = f"{person.uid}:{person.gid}"
        these, found = found[: head_seq - after_seq], found[head_seq - after_seq :]
        after_seq = head_seq
        assert [told(entry, since_ns) for entry in these] == [
            line.replace("~", own).replace("=", own) for line in expected
        ]
        assert {(entry["uid"], entry["gid"]) for entry in these} == {(person.uid, person.gid)}
    assert not found


def _has_silly(directory: Path) -> bool:
    return any(name.startswith(".nfs") for name in os.listdir(directory))


def test_what_is_refused_is_not_done(sites: Sites) -> None:
    """Too large for ext4, which alone can say so, after the entry is there."""
    layer, volume, plain = sites
    with Person(SOMEBODY, 2000) as person:
        for site in (plain, volume):
            (site.served / "file").write_text("content")
            os.chown(site.served / "file", SOMEBODY, 2000)
        after_seq = layer.head_seq()
        for site in (plain, volume):
            with pytest.raises(OSError, match="File too large"):
                person.ask(os.truncate, site.client / "file", 1 << 50)
            assert (site.client / "file").read_text() == "content"
    assert [told(entry, 0) for entry in entries(layer, after_seq)] == [
        f"truncate file {1 << 50} EFBIG"
    ]
    check_replay(layer, layer.base / "rebuilt")


def test_squashed_users(nfs: NfsServer, version: str, volume: Layer, plain: Path) -> None:
    export = Export(squash="all_squash,anonuid=1234,anongid=1235")
    with exported_twins(nfs, version, volume, plain, export) as sites:
        after_seq = volume.head_seq()
        for uid in (0, SOMEBODY):
            with Person(uid, 2000) as person:
                expected, _ = person.ask(perform, busy, sites.plain.client)
                answers, _ = person.ask(perform, busy, sites.volume.client)
            assert answers == expected
        assert not difference(
            image(sites.volume.served, times=False), image(sites.plain.served, times=False)
        )
        assert {(e["uid"], e["gid"]) for e in entries(volume, after_seq)} == {(1234, 1235)}


# -- two clients -----------------------------------------------------------------------------------


def _reread(fd: int) -> bytes | str:
    """Reads what the server has, whatever the client remembers."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        return os.pread(fd, 100, 0)
    except OSError as error:
        return named(error)


def _rewrite(fd: int) -> str:
    try:
        os.pwrite(fd, b"late", 0)
        os.fsync(fd)
    except OSError as error:
        return named(error)
    return "written"


def _close(fd: int) -> str | None:
    try:
        os.close(fd)
    except OSError as error:
        return named(error)
    return None


def test_open_file_that_another_client_takes_away(fresh_sites: Sites, version: str) -> None:
    layer, *sites = fresh_sites
    for how in ("unlink", "rename over", "rename"):
        is_gone = version == "3" and how != "rename"
        answers = [_take_away(site, how, is_gone) for site in sites]
        assert answers[0] == answers[1]
        assert answers[0][0] == ("ESTALE" if is_gone else b"first")
    check_replay(layer, layer.base / "rebuilt")


def _take_away(site: Site, how: str, is_gone: bool) -> list[Any]:
    """Returns what one client still gets from a file, and then has of it; *is_gone*: wait for its
    end, because NFSv3 has no open files, and nfsd closes its own some time later."""
    path = site.client / "file"
    with Person(SOMEBODY) as one, Person(SOMEBODY) as other:
        one.ask(write, path, 0, b"first", os.O_CREAT)
        other.ask(write, site.other / "new", 0, b"new", os.O_CREAT)
        fd = one.ask(os.open, path, os.O_RDWR)
        assert one.ask(_reread, fd) == b"first"
        if how == "unlink":
            other.ask(os.unlink, site.other / "file")
        elif how == "rename over":
            other.ask(os.rename, site.other / "new", site.other / "file")
        else:
            other.ask(os.rename, site.other / "file", site.other / "moved")
        drop_caches()
        if is_gone:
            wait_until("the end", lambda: _reread_anew(one, fd) == "ESTALE")
        return [
            one.ask(_reread, fd), one.ask(_rewrite, fd), one.ask(_reread, fd),
            one.ask(_close, fd), image(site.served, times=False),
        ]  # fmt: skip


def _reread_anew(person: Person, fd: int) -> bytes | str:
    drop_caches()
    answer: bytes | str = person.ask(_reread, fd)
    return answer


def test_clients_see_each_others_changes(site: Site) -> None:
    """Each change changes the time by which a client knows what it has to ask for again. (On a
    plain export this fails with NFSv3: two changes can have the same time.)"""
    with Person(SOMEBODY) as one, Person(ANOTHER) as other:
        for number in range(50):
            text = b"%03d" % number
            one.ask(write, site.client / "file", 0, text, os.O_CREAT)
            assert other.ask(read, site.other / "file") == text
            one.ask(os.chmod, site.client / "file", 0o644 + number % 2)
            assert other.ask(look, site.other / "file")[0] == oct(0o100644 + number % 2)
            one.ask(os.mkdir, site.client / f"d{number}")
            assert len(other.ask(os.listdir, site.other)) == number + 2


# -- what a volume has not -------------------------------------------------------------------------


def _set_attribute(path: Path) -> bytes:
    os.setxattr(path, "user.key", b"value")
    return os.getxattr(path, "user.key")


def _allocate(path: Path) -> None:
    # posix_fallocate(3) would write zeros instead of failing.
    with open(path, "r+b") as file:
        if ctypes.CDLL(None, use_errno=True).fallocate64(
            file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(20_000)
        ):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _take_and_give_back(path: Path) -> list[Any]:
    """Returns what becomes of a file's size, bytes and blocks."""
    answers: list[Any] = []
    for flags, offset, length in ((0, 0, 1 << 20), (_PUNCH, 5000, 900_000), (_PUNCH, 0, 1 << 30)):
        with open(path, "r+b") as file:
            try:
                calls.fallocate("test", file.fileno(), offset, length, flags)
                os.fsync(file.fileno())
            except OSError as error:
                answers.append(named(error))
        answers.append((path.stat().st_size, path.stat().st_blocks, path.read_bytes()))
    return answers


def test_space_is_taken_and_given_back(fresh_sites: Sites, version: str, tmp_path: Path) -> None:
    """ALLOCATE and DEALLOCATE, which clients of version 3 have not."""
    layer, volume, plain = fresh_sites
    head_seq = layer.head_seq()
    answers = []
    for site in (plain, volume):
        write(site.served / "file", 0, b"x" * 20_000, os.O_CREAT)
        os.chown(site.served / "file", SOMEBODY, SOMEBODY)
        with Person(SOMEBODY) as person:
            answers.append(person.ask(_take_and_give_back, site.client / "file"))
    assert answers[0] == answers[1]
    made = [entry["op"] for entry in entries(layer, head_seq)]
    assert made.count("fallocate") == (0 if version == "3" else 3)
    check_replay(layer, tmp_path / "target")


def _copy(path: Path) -> bytes:
    with open(path, "rb") as source, open(path.with_name("copy"), "w+b", buffering=0) as target:
        left = path.stat().st_size
        while left:
            left -= os.copy_file_range(source.fileno(), target.fileno(), left)
        os.fsync(target.fileno())
        return target.read() or path.with_name("copy").read_bytes()


def test_the_server_copies(fresh_sites: Sites, version: str) -> None:
    """COPY, which clients of version 3 have not: they read and write."""
    layer, volume, plain = fresh_sites
    content = os.urandom(3 << 20)
    head_seq = layer.head_seq()
    for site in (plain, volume):
        write(site.served / "source", 0, content, os.O_CREAT)
        os.chown(site.served, SOMEBODY, SOMEBODY)
        before = nfsd_counts(version)
        with Person(SOMEBODY) as person:
            assert person.ask(_copy, site.client / "source") == content
        written = nfsd_counts(version)["write"] - before["write"]
        assert (site.served / "copy").read_bytes() == content
        assert (written == 0) == (version == "4.2")
    made = [entry for entry in entries(layer, head_seq) if entry["path"] == "copy"]
    assert sum(entry.get("bytes", 0) for entry in made) == len(content)


def _hole(path: Path) -> int:
    with open(path, "r+b") as file:
        os.pwrite(file.fileno(), bytes(4096), 1 << 20)
        os.fsync(file.fileno())
        return os.lseek(file.fileno(), 0, os.SEEK_HOLE)


def _truncate(path: Path) -> int:
    path.chmod(0o4755)
    os.truncate(path, 1)
    return stat.S_IMODE(path.stat().st_mode)


def _write_setuid(path: Path) -> int:
    path.chmod(0o6755)
    write(path, 0, b"x")
    return stat.S_IMODE(path.stat().st_mode)


def _extras(path: Path) -> list[Any]:
    answers: list[Any] = []
    for function in (_set_attribute, _allocate, _hole, _truncate):
        try:
            answers.append(function(path))
        except OSError as error:
            answers.append(named(error))
    return answers


def test_known_differences(sites: Sites, version: str) -> None:
    """Known differences from a plain export, so that a change of them is noticed."""
    _, volume, plain = sites
    answers = []
    for site in (plain, volume):
        (site.served / "file").write_bytes(b"x" * 4096)
        os.chown(site.served / "file", SOMEBODY, SOMEBODY)
        with Person(SOMEBODY) as person, Person() as root:
            answers.append(person.ask(_extras, site.client / "file"))
            answers[-1].append(root.ask(_write_setuid, site.client / "file"))
    end = (1 << 20) + 4096
    refused = errno.errorcode[errno.EOPNOTSUPP]
    if version == "3":
        assert answers[0] == [refused, refused, end, 0o4755, 0o6755]
    else:
        assert answers[0] == [b"value", None, 4096, 0o4755, 0o6755]
    # nfsd passes user attributes on only to file systems that have a handler for them by name;
    # FUSE has one for all. A layer clears setuid with a new size, as it must for local users and
    # nfsd does not ask for.
    assert answers[1] == [refused, *answers[0][1:3], 0o755, 0o6755]
