"""``fusejournal digest``: one number for a whole tree."""

import os
import stat
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fusejournal.cli import text
from fusejournal.control.client import ask
from fusejournal.disk import mounts as mounts
from fusejournal.errors import (
    NotRunningError,
    PathNotFoundError,
    UsageError,
    VolumeBusyError,
    VolumeNotFoundError,
)
from fusejournal.node.registry import find_volume
from fusejournal.node.state_dir import VolumeState
from fusejournal.replay.digest import TreeDigest, digest_tree

_REDRAW_SECONDS = 0.1


@click.command(short_help="One number for a whole tree.")
@click.argument("source", metavar="DIR|VOLUME")
@click.option(
    "--path",
    "within",
    default="",
    metavar="P",
    help="Only what is at P, relative to the root of the tree (a leading / is that root).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def digest(source: str, within: str, as_json: bool) -> None:
    """Print one number for everything in DIR, or in VOLUME: equal numbers, equal trees.

    It covers names, types, modes, owners, mtimes, contents, symlink targets, device numbers,
    extended attributes with ACLs, and which names are hard links of one file; not atimes, ctimes
    and the sizes of directories. A single file's covers all but its name. Of a mounted VOLUME (a
    name, a mountpoint or a state directory) the mount is read, of a stopped one the backing. A name
    is looked for among the volumes first: say ./NAME for a directory. The tree must rest: a file
    that changes while it is read ends this with exit code 18.

    \b
    Examples:
      fusejournal digest srv-data
      fusejournal digest /srv/data --path home/ann/thesis.tex
      fusejournal digest /restored/data --json
    """
    name, root = _tree(source)
    parts = _parts(within)
    found = _digest(_inside(root, parts), quiet=as_json)
    path = b"/".join(parts)
    if as_json:
        counts = found._asdict()
        del counts["digest"]
        text.echo_json(
            {"digest": found.digest, "of": text.exact(name), "path": text.exact(path), **counts}
        )
    else:
        place = text.name(name) + (f", /{text.name(path)}" if path else "")
        text.echo(f"{found.digest}  {place}: {_counts(found)}")


def _tree(source: str) -> tuple[bytes, Path]:
    """What to call the tree that *source* means, and where to read it."""
    # The volumes first: the path may be a dead mount, which must not be touched.
    try:
        state = find_volume(source)
    except VolumeNotFoundError:
        # Only what is in a tree is not followed; which tree it is, a symlink may say.
        root = Path(os.path.realpath(source))
        if not root.exists():
            raise
        return os.fsencode(root), root
    return os.fsencode(state.name), _place(state)


def _place(state: VolumeState) -> Path:
    """Where the tree of a volume can be read now."""
    try:
        ask(state.directory, "status")
    except NotRunningError:
        holder = state.holder()
        if holder is not None:
            raise VolumeBusyError(
                f"volume {state.name} is being mounted or unmounted by process "
                f"{holder.get('pid', '?')}; try again when it is done"
            ) from None
        if any(
            one.mountpoint == state.backing and one.type == mounts.FILESYSTEM_TYPE
            for one in mounts.mounts()
        ):
            raise NotRunningError(
                f"volume {state.name}: its layer has died and its mount still covers the backing; "
                f"'fusejournal umount {state.name}' takes it away"
            ) from None
        return state.backing
    return state.mountpoint


def _parts(within: str) -> list[bytes]:
    parts = [part for part in os.fsencode(within).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise UsageError(f"--path {within!r}: '..' leads out of the tree; give the path without it")
    return parts


def _inside(root: Path, parts: list[bytes]) -> Path:
    """The file at *parts* below *root*. No symlink is followed on the way: it could lead out of the
    tree. Raises PathNotFoundError."""
    path = os.fsencode(root)
    mode = stat.S_IFDIR
    for part in parts:
        path = os.path.join(path, part)
        try:
            mode = os.lstat(path).st_mode if stat.S_ISDIR(mode) else 0
        except FileNotFoundError:
            mode = 0
        if not mode:
            raise PathNotFoundError(text.name(b"/".join(parts)), f"no such file in {root}")
    return Path(os.fsdecode(path))


def _digest(root: Path, quiet: bool) -> TreeDigest:
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("reading: {task.fields[entries]:,} entries, {task.fields[size]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("digest", total=None, entries=0, size=text.size(0))
        drawn = time.monotonic()

        def show(entries: int, size: int) -> None:
            nonlocal drawn
            if time.monotonic() - drawn >= _REDRAW_SECONDS:
                drawn = time.monotonic()
                bar.update(task, entries=entries, size=text.size(size))

        return digest_tree(root, show)


def _counts(found: TreeDigest) -> str:
    return ", ".join(
        (
            text.count(found.entries, "entry", "entries"),
            text.count(found.files, "file"),
            text.count(found.directories, "directory", "directories"),
            text.size(found.bytes),
        )
    )
