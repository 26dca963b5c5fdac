"""The two exports that scripts/bench/nfs.py compares, inside the guest: a volume and a plain ext4,
each on a new disk, and the NFS mounts of both. The layer can run with a clock on its handlers:
``python -m scripts.bench.nfs_exports ARGUMENTS`` is that layer, ARGUMENTS being fusejournal's."""

import gc
import inspect
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from fusejournal.journal.segment import PLAIN_SUFFIX
from tests.support.guest.server import NfsServer, exported, make_disk, sh, wait_until
from tests.support.layer import Layer

OUT = Path("/out")
MODES = {"sync": ("nfs", "/dev/ubda", "/dev/ubdb"), "async": ("async", "/dev/ubdc", "/dev/ubdd")}
"""The volume's durability, the layer's disk and the plain one, by the export's mode."""

WAITS, FLUSHES = "wait", "Durability._timed_sync"
"""The names in the trace of a reply that waits for a flush, and of a flush."""

_NFSD_THREADS = 8
_REST_SECONDS = 120.0
_REST_SECONDS_MIN = 0.1
_TRACE, _TRACE_MIN = "FUSEJOURNAL_BENCH_TRACE", "FUSEJOURNAL_BENCH_TRACE_MIN_SECONDS"


class Dentry(NamedTuple):
    """One directory of an export."""

    directory: str
    asking: str
    """The same one through a mount that keeps no attributes."""


class Exports(NamedTuple):
    """The layer and what its clients see: of each side and version, both mountpoints."""

    layer: Layer
    clients: dict[tuple[str, str], tuple[Path, Path]]
    sides: tuple[str, ...]
    """The layer, the plain export and, where it is wanted, bindfs."""
    rests: list[float]
    """Seconds for which :meth:`rest` had to wait."""

    def place(self, side: str, version: str, name: str) -> Dentry:
        """A directory of this name, which is made if need be."""
        mountpoint, asking = self.clients[side, version]
        (mountpoint / name).mkdir(exist_ok=True)
        return Dentry(f"{mountpoint / name}", f"{asking / name}")

    def rest(self) -> None:
        """Wait until the layer has indexed and compressed what it has finished writing."""
        begun = time.monotonic()
        wait_until("the layer's rest", lambda: len(self._plain_segments()) <= 1, _REST_SECONDS)
        if time.monotonic() > begun + _REST_SECONDS_MIN:
            self.rests.append(time.monotonic() - begun)

    def _plain_segments(self) -> list[Path]:
        return list((self.layer.state / "journal").glob(f"*{PLAIN_SUFFIX}"))


class TracedLayer(Layer):
    """A layer that writes down how long its handlers take."""

    program = f"{__name__}:run_traced"

    def tracing(self, path: Path, seconds_min: float) -> "TracedLayer":
        self.environment |= {_TRACE: str(path), _TRACE_MIN: str(seconds_min)}
        return self


@contextmanager
def _bindfs(source: Path, mountpoint: Path) -> Iterator[Path]:
    """A passthrough in C at *mountpoint*, which lets the kernel remember as much as the layer
    does."""
    source.mkdir()
    mountpoint.mkdir()
    options = "noforget,attr_timeout=3600,entry_timeout=3600,negative_timeout=5"
    sh("bindfs", "-o", options, str(source), str(mountpoint))
    try:
        yield mountpoint
    finally:
        sh("umount", "-l", str(mountpoint))


@contextmanager
def exports(
    mode: str, versions: list[str], traced_min: float | None = None, *, bindfs: bool = False
) -> Iterator[Exports]:
    """All sides exported and mounted on new disks."""
    durability, device, plain_device = MODES[mode]
    disk, plain = Path("/srv", mode), Path("/srv", f"plain-{mode}")
    make_disk("ext4", Path(device), disk)
    make_disk("ext4", Path(plain_device), plain)
    config = f'[volume]\ndurability = "{durability}"\n'
    kind = Layer if traced_min is None else TracedLayer
    with NfsServer(_NFSD_THREADS) as server, kind(disk / "volume", config=config) as layer:
        if isinstance(layer, TracedLayer) and traced_min is not None:
            layer.tracing(OUT / f"trace-{mode}", traced_min)
        layer.start()
        options = ("no_root_squash", f"fsid={layer.ask()['uuid']}", "mountpoint")
        with ExitStack() as stack:
            stack.enter_context(exported(layer.mountpoint, *options, mode=mode))
            stack.enter_context(exported(plain, "no_root_squash", mode=mode))
            paths = {"layer": layer.mountpoint, "plain": plain}
            if bindfs:
                paths["bindfs"] = stack.enter_context(
                    _bindfs(plain / "bindfs", Path("/srv", f"bindfs-{mode}"))
                )
                fsid = f"fsid={1 + list(MODES).index(mode)}"
                stack.enter_context(exported(paths["bindfs"], "no_root_squash", fsid, mode=mode))
            clients = {
                (side, version): (
                    stack.enter_context(server.client(version, path, Path(f"{name}"))),
                    stack.enter_context(
                        server.client(version, path, Path(f"{name}-asking"), "actimeo=0")
                    ),
                )
                for side, path in paths.items()
                for version in versions
                for name in (f"/nfs/{mode}-{side}-v{version}",)
            }
            yield Exports(layer, clients, tuple(paths), [])
        layer.stop()
        if layer.words():
            print(f"the layer of the {mode} export said:\n{layer.words()}", flush=True)


def run_traced() -> None:
    """Run fusejournal's command line with a clock on every handler, and write what takes at least
    so many seconds: a line of [start, seconds, name, whether the event loop was held up] each. If
    that is not everything, then of what happens in the background too, and at the end a line with
    count, seconds and longest of each name."""
    from fusejournal.backing.catalog import Catalog
    from fusejournal.cli.main import main as command_line
    from fusejournal.disk import calls
    from fusejournal.journal.journal import Journal
    from fusejournal.journal.sealed_segments import SealedSegments
    from fusejournal.layer.handlers import Handlers
    from fusejournal.layer.kernel_protocol import request_kinds
    from fusejournal.volume.durability import Durability

    seconds_min = float(os.environ[_TRACE_MIN])
    trace = open(os.environ[_TRACE], "w", encoding="utf-8", buffering=1 << 20)  # noqa: SIM115
    totals: dict[str, list[float]] = {}
    clock, loop_thread = time.monotonic, threading.main_thread()

    def note(begun: float, name: str, in_loop: bool) -> None:
        seconds = clock() - begun
        if seconds >= seconds_min:
            trace.write(json.dumps([begun, seconds, name, in_loop]) + "\n")
        if seconds_min:
            total = totals.setdefault(name, [0, 0.0, 0.0])
            total[0] += 1
            total[1] += seconds
            total[2] = max(total[2], seconds)

    def wrap(owner: Any, name: str) -> None:
        method = getattr(owner, name)
        label = name if owner is Handlers else f"{owner.__name__.rpartition('.')[2]}.{name}"

        @wraps(method)
        async def waiting(*args: Any, **kwargs: Any) -> Any:
            begun = clock()
            try:
                return await method(*args, **kwargs)
            finally:
                note(begun, label, False)

        async def finishing(answer: Any, begun: float) -> Any:
            try:
                return await answer
            finally:
                note(begun, f"{label}, to its end", False)

        @wraps(method)
        def plain(*args: Any, **kwargs: Any) -> Any:
            begun = clock()
            try:
                answer = method(*args, **kwargs)
            finally:
                full = f"{label} {args[0]}" if owner is calls else label
                note(begun, full, threading.current_thread() is loop_thread)
            # A call of the layer that has to wait.
            return finishing(answer, begun) if inspect.iscoroutine(answer) else answer

        setattr(owner, name, waiting if inspect.iscoroutinefunction(method) else plain)

    for call in {kind.call for kind in request_kinds(0).values()}:
        wrap(Handlers, call)
    wrap(Durability, "_timed_sync")
    call_when_flushed = Durability.call_when_flushed

    def calling(self: Durability, seq: Any, since: float, done: Any) -> None:
        begun = clock()

        def ended(error: OSError | None) -> None:
            note(begun, WAITS, False)
            done(error)

        call_when_flushed(self, seq, since, ended)

    Durability.call_when_flushed = calling  # type: ignore[method-assign]
    if seconds_min:
        for owner, names in (
            (calls, ("pwritev", "fdatasync", "fsync", "syncfs", "fallocate", "fsync_directory")),
            (Journal, ("sync", "_roll")),
            (SealedSegments, ("compress",)),
            (Catalog, ("commit", "sync")),
            (Durability, ("checkpoint", "_make_index")),
        ):
            for name in names:
                wrap(owner, name)
        begun_collecting = [0.0]

        def collecting(phase: str, info: dict[str, int]) -> None:
            if phase == "start":
                begun_collecting[0] = clock()
            else:
                note(begun_collecting[0], f"gc {info['generation']}", True)

        gc.callbacks.append(collecting)
    try:
        command_line()
    finally:
        gc.callbacks.clear()
        if seconds_min:
            trace.write(json.dumps(totals) + "\n")
        trace.close()
