"""Exported trees with their clients: a volume, and the plain directory that it is measured by."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from fusejournal.node.state_dir import load_state
from fusejournal.replay.digest import digest_tree
from tests.support.guest.server import NfsServer, exported
from tests.support.layer import Layer
from tests.support.trees import difference, image, rebuild

FRESH = ("nosharecache", "actimeo=0", "lookupcache=none")
"""Mount options of a client that has caches of its own and asks the server each time."""


class Export(NamedTuple):
    """The export of both trees."""

    mode: str = "sync"
    squash: str = "no_root_squash"

    def __str__(self) -> str:
        return f"{self.mode}-{self.squash}"


class Site(NamedTuple):
    """An exported tree: on the server, and as two clients see it."""

    served: Path
    client: Path
    other: Path


@contextmanager
def exported_site(
    nfs: NfsServer, version: str, served: Path, export: Export, options: tuple[str, ...], *how: str
) -> Iterator[Site]:
    """Export *served*, *how* being further export options, and mount it for two clients, the first
    with mount *options*."""
    # To a server all mounts of one version are one client, which sees no conflict with a delegation
    # of its own. Another minor version makes it another client.
    other_version = {"4.2": "4.1"}.get(version, version)
    served.chmod(0o777)
    mounts = Path("/nfs") / served.parent.name / served.name
    with (
        exported(served, export.squash, *how, mode=export.mode),
        nfs.client(version, served, mounts / "client", *options) as client,
        nfs.client(other_version, served, mounts / "other", *FRESH) as other,
    ):
        yield Site(served, client, other)


@contextmanager
def exported_volume(
    nfs: NfsServer, version: str, layer: Layer, export: Export, options: tuple[str, ...] = ()
) -> Iterator[Site]:
    """The same for a volume: starts it, stops it, and fails for anything that it had to warn of."""
    durability = "nfs" if export.mode == "sync" else "async"
    layer.reconfigure(f'[volume]\ndurability = "{durability}"\n')
    layer.start()
    fsid = f"fsid={load_state(layer.state).uuid}"
    with exported_site(nfs, version, layer.mountpoint, export, options, "mountpoint", fsid) as site:
        yield site
    layer.stop()
    words = layer.words()
    assert all(line.startswith("importing: ") for line in words.splitlines()), words


class Sites(NamedTuple):
    """A volume and a plain directory of ext4, exported alike."""

    layer: Layer
    volume: Site
    plain: Site


@contextmanager
def exported_twins(
    nfs: NfsServer,
    version: str,
    layer: Layer,
    plain: Path,
    export: Export,
    options: tuple[str, ...] = (),
) -> Iterator[Sites]:
    """Both of them with their clients."""
    with ExitStack() as stack:
        volume = stack.enter_context(exported_volume(nfs, version, layer, export, options))
        site = stack.enter_context(exported_site(nfs, version, plain, export, options))
        yield Sites(layer, volume, site)


def check_replay(layer: Layer, target: Path) -> None:
    """The journal alone gives the tree that the layer serves."""
    target.mkdir()
    rebuild(layer.state, target, load_state(layer.state).uuid)
    assert digest_tree(target).digest == digest_tree(layer.mountpoint).digest, difference(
        image(target), image(layer.mountpoint)
    )
