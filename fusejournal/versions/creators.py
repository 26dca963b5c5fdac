"""The processes at work on a store: an object for each who creates a version, deletes one, reads
one for long, or collects; and the numbered plans of collections.

The object "active/NONCE" (JSON) is put before anything is read, and removed at the end. It tells
the newest plan that its maker had seen by then. The object "plans/N" (ten digits, JSON) lists packs
that are to go; "plans/N-done" is put when they are gone. Plans of the past are removed but for the
newest, which keeps the number.

One that died is forgotten by the next on the same machine, which can see that; for another machine
a person has to say so. No clock is trusted for it.

How these keep a collection from taking what a creator relies on: see collect.py."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from fusejournal.disk.boot import boot_id
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.json_records import checked, parse_object
from fusejournal.objects.store import (
    ObjectExistsError,
    ObjectMissingError,
    ObjectStore,
    StoreError,
    check_name,
    put_same,
)
from fusejournal.versions.packs import ID_BYTES, StoreDamagedError, block_id

_FORMAT = 1
_DONE = "-done"
_MACHINE_ID = Path("/etc/machine-id")
_HARDWARE_ID = Path("/sys/class/dmi/id/product_uuid")
_STARTED_FIELD = 19
"""The field of /proc/PID/stat, behind the command's name, that tells when the process began (the
22nd of proc(5))."""

Work = Literal["creator", "deleter", "reader", "collector"]


class BusyError(StoreError):
    """Others are at work on the store, and what was asked has to wait for them."""

    exit_code = 44


@dataclass(frozen=True)
class Worker:
    """A process that is at work on a store."""

    work: Work
    node: str
    machine: str
    """A hash of the ids of the machine and of its hardware; empty if it has none."""
    boot: str
    pids: int
    """The namespace of processes that its pid is of."""
    pid: int
    began: str
    plan: int
    """The newest plan that it had seen when it began."""
    nonce: str

    @property
    def name(self) -> str:
        """The name of its object."""
        return f"active/{self.nonce}"

    def is_dead(self) -> bool:
        """Returns True if its process is known to have ended."""
        if self.boot != boot_id():
            # Of this machine, it is of an earlier boot; of another, this node cannot know.
            return bool(self.machine) and self.machine == _machine()
        return self.pids == _pid_namespace() and self.began != _began(self.pid)


def _machine() -> str:
    try:
        id_ = _MACHINE_ID.read_bytes()
    except OSError:
        return ""
    # Virtual machines that were made of one image may have one machine id.
    with suppress(OSError):
        id_ += _HARDWARE_ID.read_bytes()
    return block_id(b"fusejournal " + id_).hex()


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _began(pid: int) -> str:
    """Returns when process *pid* began, in the kernel's count; empty if there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_STARTED_FIELD]
    return ""


def register(store: ObjectStore, work: Work, node: str) -> Worker:
    """Puts the object of a worker that is this process. :func:`unregister` it at the end. Raises
    StoreFullError, StoreError."""
    worker = _this_process(work, node, newest_plan(store))
    _put(store, worker)
    return worker


def _this_process(work: Work, node: str, plan: int) -> Worker:
    pid = os.getpid()
    nonce = uuid4().hex
    return Worker(
        work, node, _machine(), boot_id(), _pid_namespace(), pid, _began(pid), plan, nonce
    )


def _put(store: ObjectStore, worker: Worker) -> None:
    put_same(store, worker.name, json.dumps({"format": _FORMAT, **asdict(worker)}).encode())


def unregister(store: ObjectStore, worker: Worker) -> None:
    """Removes the object of *worker*. Raises StoreError."""
    store.remove(worker.name)


@contextmanager
def reading(store: ObjectStore, node: str) -> Iterator[None]:
    """Has collections take no block that a version has which is found within the block of this,
    even if the version is deleted meanwhile. A store that takes no object, because its disk is full
    or for reading alone, is read all the same, without that."""
    me: Worker | None = None
    try:
        me = register(store, "reader", node)
    except StoreError as error:
        # Only here: most commands have nothing to log, and should not wait for it to load.
        import logging

        logging.getLogger(__name__).info("read without word of it: %s", error)
    try:
        yield
    finally:
        if me is not None:
            with suppress(StoreError):
                unregister(store, me)


def check_registered(store: ObjectStore, worker: Worker) -> None:
    """Raises BusyError if *worker* was taken for dead."""
    try:
        store.get_range(worker.name, 0, 1)
    except ObjectMissingError:
        raise BusyError(
            store.where, f"{worker.node} was taken for dead meanwhile: nothing was done; try again"
        ) from None


def alone(store: ObjectStore, me: Worker) -> None:
    """Raises BusyError if another collector than *me* is at work; StoreError."""
    for worker in workers(store):
        if worker.work == "collector" and worker.nonce != me.nonce:
            raise BusyError(store.where, f"{worker.node} is collecting it (pid {worker.pid})")


def workers(store: ObjectStore, *, forgetting: bool = True) -> list[Worker]:
    """Returns all who are at work, and, if *forgetting*, has those of this machine that are dead be
    forgotten. Raises StoreDamagedError, StoreError."""
    found = []
    for name in store.names("active/"):
        try:
            worker = _decode(f"{store.where}/{name}", store.get(name))
        except ObjectMissingError:
            continue
        if not worker.is_dead():
            found.append(worker)
        elif forgetting:
            unregister(store, worker)
    return found


def _decode(where: str, content: bytes) -> Worker:
    try:
        raw = parse_object(content)
        if raw.pop("format") != _FORMAT:
            raise StoreError(where, "is of a newer version of fusejournal: upgrade this one")
        worker = checked(Worker(**raw))
        check_name(worker.name)
        texts = worker.node, worker.machine, worker.boot, worker.began
        if not all(one.isprintable() for one in texts):
            raise ValueError("no text")
        return worker
    except UNREADABLE_JSON as error:
        raise StoreDamagedError(where, f"is spoilt: {error}") from None


# -- plans -----------------------------------------------------------------------------------------


def _plan_name(number: int) -> str:
    return f"plans/{number:010d}"


def newest_plan(store: ObjectStore) -> int:
    """Returns the number of the newest plan; 0 if there never was one. Raises StoreError."""
    numbers = [_number(name) for name in store.names("plans/")]
    return max(numbers, default=0)


def _number(name: str) -> int:
    text = name.removeprefix("plans/").removesuffix(_DONE)
    return int(text) if text.isdigit() else 0


def open_plan(store: ObjectStore) -> tuple[int, frozenset[bytes]] | None:
    """Returns number and packs of the newest plan if it is not done yet. Raises StoreDamagedError,
    StoreError."""
    number = newest_plan(store)
    names = list(store.names("plans/"))
    if not number or _plan_name(number) + _DONE in names:
        return None
    where = f"{store.where}/{_plan_name(number)}"
    try:
        raw = parse_object(store.get(_plan_name(number)))
        if raw["format"] != _FORMAT:
            raise StoreError(where, "is of a newer version of fusejournal: upgrade this one")
        packs = frozenset(bytes.fromhex(pack) for pack in raw["packs"])
        if not all(len(pack) == ID_BYTES for pack in packs):
            raise ValueError("no name of a pack")
        return number, packs
    except ObjectMissingError:
        return None
    except UNREADABLE_JSON as error:
        raise StoreDamagedError(where, f"is spoilt: {error}") from None


def put_plan(store: ObjectStore, number: int, packs: frozenset[bytes]) -> None:
    """Puts plan *number*. Raises BusyError where another collector was first; StoreFullError,
    StoreError."""
    raw = {"format": _FORMAT, "packs": sorted(pack.hex() for pack in packs), "by": uuid4().hex}
    try:
        store.put_new(_plan_name(number), json.dumps(raw).encode())
    except ObjectExistsError:
        raise BusyError(store.where, "another collection was planned meanwhile") from None


def finish_plan(store: ObjectStore, number: int) -> None:
    """Writes down that plan *number* is done, and removes older ones. Raises StoreFullError,
    StoreError."""
    put_same(store, _plan_name(number) + _DONE, b"")
    for name in list(store.names("plans/")):
        if _number(name) < number:
            store.remove(name)
