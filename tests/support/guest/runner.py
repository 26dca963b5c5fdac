"""Runs guests beside the host's own tests, in a process of its own: those change their user and
umask at times, which all threads of a process share.

``python -m tests.support.guest.runner`` reads its plan from the first line of stdin, JSON::

    {"runs": [{"module": ..., "tests": [...], "prepare": "module:function" or null,
               "memory_mib": ..., "out": ...}],
     "cpus": [...]}

and boots the guests, two at a time on the first processor, because a guest waits as much as it
works; a second line says that the others are free, too. The end of stdin ends all guests. For each
run *out* gets what the guest leaves, and at last ``ended``: why it ended."""

import importlib
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from tests.support.guest.machine import Guest

INSIDE = "FUSEJOURNAL_GUEST"
"""Set in the guest's environment."""

_LIMIT_SECONDS = 1800
"""The time that a guest may take, beside all that runs on a machine that others use, too."""
_ASKING = (
    "FUSEJOURNAL_MODEL_", "FUSEJOURNAL_NFS_MOVES", "FUSEJOURNAL_NFS_LARGE", "FUSEJOURNAL_PURE",
)  # fmt: skip
_DISKS_MIB = (8192, 4096, 4096)
_AT_ONCE = 2
"""Guests on a processor."""
_MEMORY_MIB = 4096
"""The host's memory that a guest takes, with its disks' pages."""
_POLL_SECONDS = 0.5

_stopping = threading.Event()


def _asked() -> dict[str, str]:
    """The variables of the environment that tests go by."""
    return {name: word for name, word in os.environ.items() if name.startswith(_ASKING)}


def _boot(run: dict[str, Any], cpu: int) -> str:
    """Run one guest to its end on processor *cpu*; what it said at last."""
    out = Path(run["out"])
    # No plugin of the host's session but those of pyproject.toml and conftest.py; no cache: the
    # checkout is the host's.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "@/out/tests"]
    images: list[Path] = []
    try:
        if run["prepare"]:
            module, _, function = run["prepare"].partition(":")
            (out / "prepared").mkdir()
            images = getattr(importlib.import_module(module), function)(out / "prepared")
        with Guest(
            command,
            out,
            disk_mib=_DISKS_MIB,
            images=images,
            cpu=cpu,
            memory_mib=run["memory_mib"],
            environment={INSIDE: "1", **_asked()},
        ) as guest:
            limit = time.monotonic() + _LIMIT_SECONDS
            while guest.is_alive() and time.monotonic() < limit and not _stopping.is_set():
                guest.nudge()
                _stopping.wait(_POLL_SECONDS)
            return guest.words()
    except Exception as error:
        # A thread's exceptions go nowhere: the tests that it owes fail with it.
        return f"{error!r}"
    finally:
        for image in images:
            image.unlink(missing_ok=True)


def _run_all(waiting: "SimpleQueue[dict[str, Any]]", cpu: int) -> None:
    while not _stopping.is_set():
        try:
            run = waiting.get_nowait()
        except Empty:
            return
        out = Path(run["out"])
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        (out / "tests").write_text("\n".join(run["tests"]))
        words = _boot(run, cpu)
        (out / "ended.new").write_text(words)
        (out / "ended.new").rename(out / "ended")


def _memory_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 0


def main() -> None:
    """Runs the guests."""
    plan = json.loads(sys.stdin.readline())
    waiting: SimpleQueue[dict[str, Any]] = SimpleQueue()
    for run in plan["runs"]:
        waiting.put(run)
    cpus = [cpu for cpu in plan["cpus"] for _ in range(_AT_ONCE)]
    cpus = cpus[: max(1, _memory_mib() // _MEMORY_MIB)]
    threads = [threading.Thread(target=_run_all, args=(waiting, cpu)) for cpu in cpus]
    for thread in threads[:_AT_ONCE]:
        thread.start()
    if sys.stdin.readline():
        for thread in threads[_AT_ONCE:]:
            thread.start()
        sys.stdin.read()
    _stopping.set()
    for thread in threads:
        if thread.ident is not None:
            thread.join()


if __name__ == "__main__":
    main()
