"""Locks between clients, by NLM and in NFSv4, and races for names: as on a plain export of ext4."""

import fcntl
import itertools
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.guest.client import Person, entries, name_changes, named
from tests.support.guest.server import NfsServer, wait_until
from tests.support.guest.sites import FRESH, Export, Site, Sites, check_replay, exported_twins
from tests.support.layer import Layer
from tests.support.users import ANOTHER, SOMEBODY

pytestmark = pytest.mark.guest

_FLOCK = struct.Struct("hhqqi4x")
_KINDS = {fcntl.F_RDLCK: "shared", fcntl.F_WRLCK: "exclusive", fcntl.F_UNLCK: "none"}


def lock(fd: int, kind: int, start: int = 0, length: int = 0, wait: bool = False) -> str:
    """Lock or unlock (F_RDLCK, F_WRLCK, F_UNLCK) *length* bytes, 0 for all, from *start*; what came
    of it."""
    command = fcntl.F_SETLKW if wait else fcntl.F_SETLK
    try:
        fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        return named(error)
    return "done"


def holder(fd: int, kind: int, start: int = 0, length: int = 0) -> tuple[str, int, int]:
    """The lock that is in the way of such a one: its kind, start and length."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    found, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return _KINDS[found], start, length


def flock(fd: int, how: int) -> str:
    """flock(2), which NFS makes a lock of the whole file; what came of it."""
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        return named(error)
    return "done"


def is_waiting(person: Person) -> bool:
    """True if a server has told *person* to wait for a lock: its client sleeps until it asks again,
    or is called back."""
    stack = Path(f"/proc/{person.pid}/stack").read_text()
    return "nlmclnt_block" in stack or ("nfs4_retry_setlk" in stack and "wait_woken" in stack)


R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def _ranges(one: Person, other: Person, one_fd: int, other_fd: int) -> list[Any]:
    """Ranges, kinds, upgrades and the locks in their way."""
    a, b = (one, one_fd), (other, other_fd)
    return [
        person.ask(function, fd, *arguments)
        for (person, fd), function, *arguments in (
            (a, lock, W, 0, 10), (b, lock, W, 5, 1), (b, lock, R, 9, 10), (b, lock, W, 10, 10),
            (b, holder, W, 0, 100), (a, holder, R, 0, 0), (b, holder, W, 50, 5),
            (a, lock, U, 3, 3), (b, lock, W, 3, 3), (b, lock, W, 2, 3), (a, holder, W, 0, 10),
            (b, holder, R, 0, 3), (b, holder, R, 6, 4),
            (a, lock, U), (b, lock, U), (a, holder, W), (b, holder, W),
            (a, lock, R, 0, 100), (b, lock, R, 50, 100), (a, lock, W, 0, 60), (a, lock, W, 0, 50),
            (b, holder, R, 0, 50), (b, lock, U, 50, 100), (a, lock, W, 0, 60),
            (b, holder, R, 59, 1),
            (a, lock, U), (b, lock, W, 1 << 40, 0), (a, lock, W, 0, 1 << 40), (a, holder, W, 0, 0),
            (a, lock, W, 0, 0), (b, lock, U), (a, lock, U),
            (a, flock, fcntl.LOCK_EX | fcntl.LOCK_NB), (b, flock, fcntl.LOCK_EX | fcntl.LOCK_NB),
            (b, flock, fcntl.LOCK_SH | fcntl.LOCK_NB), (a, flock, fcntl.LOCK_UN),
            (b, flock, fcntl.LOCK_SH | fcntl.LOCK_NB), (a, flock, fcntl.LOCK_EX | fcntl.LOCK_NB),
            (b, flock, fcntl.LOCK_UN),
        )
    ]  # fmt: skip


def test_ranges(fresh_sites: Sites) -> None:
    _, *sites = fresh_sites
    answers = []
    for site in sites:
        with Person(SOMEBODY) as one, Person(ANOTHER) as other:
            one.ask(_make_for_all, site.client / "file")
            one_fd = one.ask(os.open, site.client / "file", os.O_RDWR)
            other_fd = other.ask(os.open, site.other / "file", os.O_RDWR)
            answers.append(_ranges(one, other, one_fd, other_fd))
    assert answers[0] == answers[1]
    assert answers[0][:5] == ["done", "EAGAIN", "EAGAIN", "done", ("exclusive", 0, 10)]


def test_locks_of_the_servers_own_processes(fresh_sites: Sites) -> None:
    _, *sites = fresh_sites
    answers = []
    for site in sites:
        with Person() as local, Person(SOMEBODY) as one:
            one.ask(_make_for_all, site.client / "file")
            fd = one.ask(os.open, site.client / "file", os.O_RDWR)
            local_fd = local.ask(os.open, site.served / "file", os.O_RDWR)
            answers.append([
                local.ask(lock, local_fd, W, 0, 10), one.ask(lock, fd, W, 0, 10),
                one.ask(holder, fd, R, 0, 1), one.ask(lock, fd, W, 10, 10),
                local.ask(lock, local_fd, R, 19, 1), local.ask(holder, local_fd, W, 0, 0),
                local.ask(lock, local_fd, U), one.ask(lock, fd, W, 0, 10),
            ])  # fmt: skip
    assert answers[0] == answers[1]
    assert answers[0][:2] == ["done", "EAGAIN"]


_RELEASES: dict[str, Callable[[Person, int], Any]] = {
    "unlock": lambda person, fd: person.ask(lock, fd, U),
    "unlock a part": lambda person, fd: person.ask(lock, fd, U, 5, 5),
    "share": lambda person, fd: person.ask(lock, fd, R),
    "close": lambda person, fd: person.ask(os.close, fd),
    "die": lambda person, fd: person.kill(),
    "be local": lambda person, fd: person.ask(lock, fd, U),
}


@contextmanager
def _places(nfs: NfsServer, site: Site) -> Iterator[dict[str, tuple[Path, Path]]]:
    """Clients, one to hold a lock and one to wait for it: of each version, and of both."""
    base = site.client.parent
    with (
        nfs.client("4.2", site.served, base / "client 4.2", *FRESH) as client,
        nfs.client("4.1", site.served, base / "other 4.1", *FRESH) as other,
    ):
        yield {
            "v3": (site.client, site.other), "v4": (client, other), "both": (site.client, other),
        }  # fmt: skip


def test_waiting_for_a_lock(nfs: NfsServer, volume: Layer, plain: Path) -> None:
    """All at once, because on a volume it takes a client up to 30 s to notice: nfsd and lockd keep
    no waiters on a file system that has a method for locks, as every FUSE mount has, and the
    clients ask again."""
    with exported_twins(nfs, "3", volume, plain, Export(), FRESH) as sites:
        for site in sites[1:]:
            with _places(nfs, site) as places:
                _wait_for_locks(site.served, places)


def _wait_for_locks(served: Path, places: dict[str, tuple[Path, Path]]) -> None:
    with ExitStack() as stack:
        cases = []
        for name, how in itertools.product(places, _RELEASES):
            holding, asking = places[name]
            file = f"{name} {how}"
            one, other = (stack.enter_context(Person(uid)) for uid in (SOMEBODY, ANOTHER))
            one.ask(_make_for_all, holding / file)
            place = served if how == "be local" else holding
            one_fd = one.ask(os.open, place / file, os.O_RDWR)
            other_fd = other.ask(os.open, asking / file, os.O_RDWR)
            assert one.ask(lock, one_fd, W) == "done"
            other.begin(lock, other_fd, R if how == "share" else W, 5, 5, True)
            cases.append((how, one, one_fd, other, other_fd))
        victims = []
        for name, (_, asking) in places.items():
            victim = stack.enter_context(Person(ANOTHER))
            fd = victim.ask(os.open, asking / f"{name} unlock", os.O_RDWR)
            victim.begin(lock, fd, W, 0, 0, True)
            victims.append(victim)
        for person in (*victims, *(case[3] for case in cases)):
            wait_until("somebody to wait", lambda: is_waiting(person))  # noqa: B023
            assert person.is_busy()
        for victim in victims:
            victim.kill()
        for how, one, one_fd, _, _ in cases:
            _RELEASES[how](one, one_fd)
        for how, one, one_fd, other, other_fd in cases:
            wait_until(f"the lock after {how}", lambda: not other.is_busy(), 60)  # noqa: B023
            assert other.end() == "done"
            if how not in ("share", "close", "die"):
                assert one.ask(lock, one_fd, W, 9, 1) == "EAGAIN"
                # A person that died while waiting has nothing.
                assert one.ask(lock, one_fd, W, 0, 5) == "done"
                assert other.ask(lock, other_fd, U) == "done"
                assert one.ask(lock, one_fd, W) == "done"


def _make_for_all(path: Path) -> None:
    path.write_text("content")
    path.chmod(0o666)


def test_locks_serve_their_purpose(volume: Layer, site: Site) -> None:
    """Two clients count in one file."""
    with ExitStack() as stack:
        people = [stack.enter_context(Person(uid)) for uid in (SOMEBODY, ANOTHER)]
        people[0].ask(_make_for_all, site.client / "file")
        people[0].ask(Path.write_text, site.client / "file", "0")
        places = (site.client / "file", site.other / "file")
        for person, path in zip(people, places, strict=True):
            person.begin(_count, path, 40)
        for person in people:
            person.end()
    assert (site.served / "file").read_text() == "80"
    check_replay(volume, volume.base / "rebuilt")


def _count(path: Path, times: int) -> None:
    fd = os.open(path, os.O_RDWR)
    for _ in range(times):
        # Not by waiting, which takes long here (see above).
        while lock(fd, W) != "done":
            pass
        number = int(os.pread(fd, 20, 0))
        os.pwrite(fd, str(number + 1).encode(), 0)
        assert lock(fd, U) == "done"
    os.close(fd)


# -- races -----------------------------------------------------------------------------------------


def _exclusively(path: Path) -> str:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except OSError as error:
        return named(error)
    return "won"


def _mkdir(path: Path) -> str:
    try:
        path.mkdir()
    except OSError as error:
        return named(error)
    return "won"


def _link(path: Path) -> str:
    """Locks as programs did before there was O_EXCL: each has a file of its own to link."""
    own = path.parent / f"own{os.getuid()}"
    own.touch()
    try:
        os.link(own, path)
    except OSError as error:
        return named(error)
    return "won"


def _unlink(path: Path) -> str:
    try:
        path.unlink()
    except OSError as error:
        return named(error)
    return "won"


_NAMES = 40


@pytest.mark.parametrize(
    ("race", "loses", "operation"),
    [
        (_exclusively, "EEXIST", "create"), (_mkdir, "EEXIST", "mkdir"), (_link, "EEXIST", "link"),
        (_unlink, "ENOENT", "unlink"),
    ],
)  # fmt: skip
def test_races(
    volume: Layer, site: Site, race: Callable[[Path], str], loses: str, operation: str
) -> None:
    with ExitStack() as stack:
        people = [stack.enter_context(Person(uid)) for uid in range(1000, 1006)]
        if race is _unlink:
            for number in range(_NAMES):
                (site.served / f"name{number}").touch()
        after_seq = volume.head_seq()
        winners = []
        for number in range(_NAMES):
            for at, person in enumerate(people):
                place = site.other if at % 2 else site.client
                person.begin(race, place / f"name{number}")
            answers = [person.end() for person in people]
            assert sorted(answers) == [loses] * 5 + ["won"]
            winners.append(people[answers.index("won")].uid)
    found = [
        entry for entry in entries(volume, after_seq)
        if "refused" not in entry and entry["op"] == operation and entry["path"][:4] == "name"
    ]  # fmt: skip
    assert name_changes(found) == [(operation, f"name{number}") for number in range(_NAMES)]
    assert [entry["uid"] for entry in found] == winners
    assert len(set(winners)) > 1
    check_replay(volume, volume.base / "rebuilt")
