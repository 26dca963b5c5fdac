"""Nodes whose roles change: what is done to them, and what they serve then."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusejournal.replication.peers import PeerBook
from tests.support.mirrors import CONFIG, PORT, Node, await_level, know_each_other, nodes

BLOCKING = CONFIG + 'mirrors = 1\non_timeout = "block"\nmirrors_timeout_seconds = 1.0\n'


def work(node: Node, name: str) -> None:
    """Make something of each kind, of which the last is on the disk."""
    directory = node.mountpoint / name
    directory.mkdir()
    (directory / "kept").write_text(name)
    (directory / "moved").write_text(name * 100)
    (directory / "moved").rename(directory / "there")
    os.link(directory / "kept", directory / "linked")
    fd = os.open(directory / "kept", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def promote(node: Node, *options: str) -> dict[str, Any]:
    """Promote *node*, and return the plan."""
    done = node.run("promote", str(node.state), "--json", *options)
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def serves(node: Node) -> bool:
    """True if *node* takes changes."""
    status = node.ask()
    return bool(status["role"] == "primary" and status["state"] == "running")


def takes_nothing(node: Node) -> bool:
    """True if *node* is read-only for users."""
    try:
        (node.mountpoint / "refused").mkdir()
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def stand_by(one: Node, other: Node) -> None:
    """Two mirrors of one primary, neither of which runs: each is shipped to by the other, should
    that become the primary."""
    for source, sink in ((one, other), (other, one)):
        know_each_other(source, sink, sink.host.address, PORT)
    for source, sink in ((one, other), (other, one)):
        book = PeerBook.load(source.state)
        book.turn_back(sink.name)
        book.save()


@contextmanager
def three(base: Path, config: str) -> Iterator[tuple[Node, Node, Node]]:
    """A primary and two mirrors of it that know each other; all run, and are level."""
    with nodes(base, None, None, config=config) as (primary, one, other):
        stand_by(one, other)
        for node in (primary, one, other):
            node.start(wait=False)
        for node in (primary, one, other):
            node.await_live()
        for mirror in (one, other):
            primary.await_peer(mirror, "streaming")
        work(primary, "before")
        await_level(primary, one, other)
        yield primary, one, other


def fsync_directory(path: Path) -> None:
    """Wait until the directory at *path* is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def demote(node: Node, *options: str) -> None:
    """Demote *node*."""
    node.run("demote", str(node.state), *options)
