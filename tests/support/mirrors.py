"""Primary and mirrors, each a real layer in a network namespace of its own, and how to compare
them."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fusejournal.address import Address, node_name
from fusejournal.control.client import ask
from fusejournal.errors import FusejournalError
from fusejournal.journal.segment import SegmentReader, first_seq_of, list_segments
from fusejournal.node.state_dir import load_state
from fusejournal.replay.digest import digest_tree
from fusejournal.replication.peers import PeerBook
from fusejournal.wire.identity import load_or_make
from tests.support.layer import Layer
from tests.support.network import Cable, Host, Network, network
from tests.support.trees import difference, fids, image

PORT = 7710
_LEVEL_SECONDS = 60.0
_PAUSE_SECONDS = 0.01

CONFIG = """
[journal]
segment_bytes = "256KiB"
[log]
level = "info"
[replication]
take_back_seconds = 5.0
"""
"""Small segments, so that there are many."""


class Node(Layer):
    """One node at *host*: a volume that listens there. ``base``'s name is the volume's."""

    can_have_base = False

    def __init__(
        self,
        base: Path,
        host: Host,
        role: str,
        config: str = "",
        *,
        backing: Path | None = None,
        state: Path | None = None,
    ) -> None:
        super().__init__(base, config=config or CONFIG, backing=backing)
        self.state = state or self.state
        self.role = role
        self.host = host
        self.namespace = host.namespace

    def ships_to(self, other: "Node") -> None:
        """Let *other* be a mirror of this one; while neither runs."""
        know_each_other(self, other, other.host.address, PORT)

    def stands_by_for(self, other: "Node") -> None:
        """Ship to *other* once this one is the primary; while neither runs."""
        know_each_other(self, other, other.host.address, PORT, standby=True)

    def mount_arguments(self, *extra: str) -> list[str]:
        return [
            *("mount", str(self.backing), str(self.mountpoint), "--name", self.name),
            *("--state", str(self.state), "--config", str(self._config), "--role", self.role),
            *("--listen", f"{self.host.address}:{PORT}", "--open-backing", *extra),
        ]

    def begin_anew(self) -> None:
        """While stopped: have nothing any more but key and peers, in an empty backing."""
        for path in self.state.iterdir():
            if path.name not in ("identity", "peers.json"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.backing)
        self.backing.mkdir()

    @property
    def name(self) -> str:
        """The volume's, and the peer's."""
        return self.base.name

    # -- status ------------------------------------------------------------------------------------

    def mirroring(self) -> dict[str, Any]:
        """A mirror's status as one."""
        found: dict[str, Any] = self.ask()["replication"]["mirror"]
        return found

    def peer(self, other: "Node") -> dict[str, Any]:
        """The status of shipping to *other*."""
        peers = self.ask()["replication"]["peers"]
        return next(peer for peer in peers if peer["name"] == other.name)

    def pause(self, other: "Node") -> None:
        """Ship nothing to *other*."""
        ask(self.state, "peer-pause", name=other.name)

    def resume(self, other: "Node") -> None:
        """Ship to *other* again; at once, if it was to be tried later."""
        ask(self.state, "peer-resume", name=other.name)

    def await_peer(self, other: "Node", state: str, seconds: float = 30.0) -> dict[str, Any]:
        """Wait until shipping to *other* is in *state*; its status."""
        wait_for(lambda: self.peer(other)["state"] == state, lambda: self.peer(other), seconds)
        return self.peer(other)


def know_each_other(
    source: Layer, sink: Layer, address: str, port: int, *, standby: bool = False
) -> None:
    """Pair two nodes, neither of which runs: *source* ships to *sink*, which listens there;
    *standby*: once it is the primary."""
    _know(source, sink, Address(address, port), standby=standby)
    _know(sink, source, None)


def _know(one: Layer, other: Layer, address: Address | None, *, standby: bool = False) -> None:
    name = other.base.name
    other.state.mkdir(mode=0o700, exist_ok=True)
    one.state.mkdir(mode=0o700, exist_ok=True)
    identity = load_or_make(other.state / "identity", node_name(name))
    book = PeerBook.load(one.state)
    book.pair(name, address, identity.certificate, standby=standby)
    book.save()


@contextmanager
def nodes(
    base: Path, *mirrors: Cable | None, config: str = "", cascade: bool = False
) -> Iterator[tuple[Node, ...]]:
    """A primary and a mirror for each cable, none of them started. *cascade*: each ships to the
    next, rather than the first to all."""
    with ExitStack() as stack:
        net: Network = stack.enter_context(network())
        found = [stack.enter_context(Node(base / "primary", net.host(), "primary", config))]
        for number, cable in enumerate(mirrors, 1):
            mirror = Node(base / f"mirror{number}", net.host(cable), "mirror", config)
            found.append(stack.enter_context(mirror))
            found[-2 if cascade else 0].ships_to(mirror)
        yield tuple(found)


@contextmanager
def started(
    base: Path, *mirrors: Cable | None, config: str = "", cascade: bool = False
) -> Iterator[tuple[Node, ...]]:
    """Makes :func:`nodes`, all of them running."""
    with nodes(base, *mirrors, config=config, cascade=cascade) as found:
        for node in found:
            node.start(wait=False)
        for node in found:
            node.await_live()
        yield found


def wait_for(
    condition: Callable[[], object],
    told: Callable[[], object],
    seconds: float = 30.0,
    pause_seconds: float = _PAUSE_SECONDS,
) -> None:
    """Return when *condition* holds. Raises TimeoutError with what *told* tells."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(FusejournalError, OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds} s: {told()}")
        time.sleep(pause_seconds)


def await_level(source: Node, *sinks: Node, seconds: float = _LEVEL_SECONDS) -> None:
    """Wait until all *sinks* have applied what *source*, on which nothing happens, has."""
    head_seq = source.head_seq()

    def told() -> object:
        return [(node.ask(), node.words()) for node in (source, *sinks)]

    wait_for(
        lambda: all(sink.mirroring()["applied_seq"] >= head_seq for sink in sinks), told, seconds
    )


def unlike_journals(one: Path, other: Path) -> str:
    """Returns in words how the journals in two directories differ, uncompressed; empty where they
    do not. (A newest segment may have space ahead of its end.)"""
    paths, others = list_segments(one), list_segments(other)
    if [first_seq_of(path) for path in paths] != [first_seq_of(path) for path in others]:
        return f"{[path.name for path in paths]} != {[path.name for path in others]}"
    for path, twin in zip(paths, others, strict=True):
        content, copy = _content(path), _content(twin)
        if path == paths[-1]:
            length = max(len(content), len(copy))
            content, copy = content.ljust(length, b"\0"), copy.ljust(length, b"\0")
        if content != copy:
            at = next(n for n, (a, b) in enumerate(zip(content, copy, strict=False)) if a != b)
            return f"{path.name} differs at byte {at} ({len(content)} and {len(copy)} bytes)"
    return ""


def _content(path: Path) -> bytes:
    with SegmentReader(path) as reader:
        return reader.read_at(0, reader.size)


def check_equal(source: Node, *sinks: Node, seconds: float = _LEVEL_SECONDS) -> None:
    """Checks what must be the same when nothing happens any more: seqs, journals, trees as they are
    seen through the layers, with fids and digests, and the trees beneath."""
    await_level(source, *sinks, seconds=seconds)
    digest = digest_tree(source.mountpoint).digest
    numbers = fids(source.mountpoint)
    for sink in sinks:
        assert sink.head_seq() == source.head_seq()
        assert load_state(sink.state).uuid == load_state(source.state).uuid
        assert unlike_journals(source.state / "journal", sink.state / "journal") == ""
        _await_digest(digest, source.mountpoint, sink.mountpoint)
        assert fids(sink.mountpoint) == numbers
        assert digest_tree(sink.backing).digest == digest
    assert digest_tree(source.backing).digest == digest


def _await_digest(digest: str, source: Path, sink: Path) -> None:
    """Waits until *sink* has *digest*: the kernel is made to forget a moment after the entry is
    applied."""
    wait_for(
        lambda: digest_tree(sink).digest == digest,
        lambda: difference(image(source), image(sink)),
        5,
    )
