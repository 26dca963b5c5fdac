"""``fusejournal version``: kept images of the tree, and the store that they are in."""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fusejournal.admin.lone_store import LoneStore, open_versions
from fusejournal.admin.versions import ListedVersion, VolumeVersions, with_advice
from fusejournal.cli import text
from fusejournal.cli.interrupts import raise_interrupt
from fusejournal.cli.progress import watched
from fusejournal.cli.version_store import key, store
from fusejournal.disk.process import lower_priority
from fusejournal.errors import UsageError
from fusejournal.types import Position
from fusejournal.versions.histories import History
from fusejournal.versions.manifest import UnreadableVersion

if TYPE_CHECKING:
    from fusejournal.admin.retention import PolicyForecast, RetainedVersion

_HISTORIES: dict[History, str] = {
    "this": "",
    "lost": " (of a history that lost)",
    "ahead": " (ahead of the journal here)",
    "before": " (before the journal here)",
    "unknown": "",
}
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON.")
_KEY_FILE = click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of a store: the recovery key is in FILE (/dev/stdin: the standard input).",
)
_CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration, with [store], if it is another one than the volume's.",
)


@click.group(short_help="Keep images of the tree, and look at them.")
def version() -> None:
    """Keep images of a volume's tree, each exactly as the journal has it after one entry.

    A version is made of the version before it and the journal's entries since, beside everything
    else that goes on, on the primary or a mirror. VERSION is a version's name or its seq.

    \b
    Examples:
      fusejournal version store init srv-data --store /backup/versions
      fusejournal version create srv-data before-upgrade
      fusejournal version list srv-data
      fusejournal restore srv-data home/anna --to-version before-upgrade --target /restore/anna
    """


@version.command(short_help="Make a version of the tree as it is now.")
@click.argument("volume")
@click.argument("name", default="")
@_AS_JSON
def create(volume: str, name: str, as_json: bool) -> None:
    """Make a version of VOLUME's tree, as the journal has it now; with a NAME, if one is given.

    The first one reads the whole journal; each further one costs what has changed since. It works
    at low priority. Stopped (Ctrl-C, a kill, a full store), it leaves all versions as they were;
    the next attempt finds what was stored already. Where no entry came since the last version, that
    one is it; if it was made without a name, it keeps none, and its seq is to be used.

    \b
    Examples:
      fusejournal version create srv-data
      fusejournal version create srv-data before-upgrade --json
    """
    lower_priority()
    versions = VolumeVersions(volume, raise_interrupt)
    with watched("reading entries", as_json, versions.traffic) as progress:
        created = versions.create(name, progress)
    made = created.version
    warn_of_unreadable(volume, created.unreadable)
    for fault in created.faults:
        text.echo(f"fusejournal: {fault}", err=True)
    if as_json:
        text.echo_json(created.to_json())
        return
    if not created.is_new:
        text.echo(f"version {made.shown_name} is of seq {made.seq} already: no entry came since")
        if name and made.name != name:
            text.echo(
                f"fusejournal: it was made without a name, and gets none: use {made.seq} where "
                f"{name!r} was to stand",
                err=True,
            )
        return
    text.echo(
        f"made version {made.shown_name} of seq {made.seq}: {text.count(made.file_count, 'file')}, "
        f"{text.size(made.content_bytes)}, of {text.count(created.entry_count, 'entry', 'entries')}"
        f"; {text.size(made.added_bytes)} added to the store"
    )


@version.command("list", short_help="All versions, a line each.")
@click.argument("volume")
@_KEY_FILE
@_CONFIG
@_AS_JSON
def list_command(volume: str, key_file: Path | None, config: Path | None, as_json: bool) -> None:
    """List VOLUME's versions, the oldest first: seq, time of its last entry, files, bytes of all
    files, bytes that it added to the store, name. VOLUME may be a store, by its directory or
    address: all versions in it, then, each with its volume's UUID.

    One of a history that lost (before a rejoin or a promotion) is marked, and never used unless you
    name it; one that is ahead is of entries that this node has not got yet. One that cannot be read
    is named at the end, with exit code 42.

    \b
    Examples:
      fusejournal version list srv-data
      fusejournal version list srv-data --json | jq -r .root
      fusejournal version list s3://my-bucket/versions --key-file /media/usb/key
    """
    versions = open_versions(volume, key_file, config, raise_interrupt)
    listed, unreadable = versions.all()
    for one in listed:
        if as_json:
            text.echo_json(one.to_json())
        else:
            of = f"{one.version.uuid}  " if isinstance(versions, LoneStore) else ""
            text.echo(of + _as_line(one))
    if as_json:
        for key, error in unreadable:
            text.echo_json({"key": key, "error": str(error)})
    if unreadable:
        warn_of_unreadable(volume, unreadable[:-1])
        raise with_advice(volume, unreadable[-1])


def warn_of_unreadable(volume: str, unreadable: Iterable[UnreadableVersion]) -> None:
    """Names versions of *volume* that cannot be read, on standard error."""
    for one in unreadable:
        text.echo(f"fusejournal: {with_advice(volume, one)}", err=True)


def _as_line(listed: ListedVersion) -> str:
    one = listed.version
    when = datetime.fromtimestamp(one.time_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")
    name = one.name + (" (protected)" if listed.is_protected else "")
    name += _HISTORIES[listed.history]
    return (
        f"{one.seq:>12}  {when}  {one.file_count:>11,} files  {text.size(one.content_bytes):>11}  "
        f"+{text.size(one.added_bytes):<11} {name}"
    ).rstrip()


@version.command(short_help="What the policy will do, and when.")
@click.argument("volume")
@_CONFIG
@_AS_JSON
def calendar(volume: str, config: Path | None, as_json: bool) -> None:
    """List VOLUME's versions with what keeps each, and the day on which the policy will let it go,
    if versions are made by the schedule ([versions] every) and something changes in each of its
    periods; then when the layer makes and prunes next. Days are of UTC, as the policy counts them.
    Nothing is changed: 'prune --dry-run' says what would go now, and what that frees.

    \b
    Examples:
      fusejournal version calendar srv-data
      fusejournal version calendar srv-data --config /root/try-a-policy.toml --json
    """
    from fusejournal.admin.retention import find_retention

    found = find_retention(volume, config, raise_interrupt)
    if as_json:
        text.echo_json(found.to_json())
        return
    for one in found.versions:
        why = f"keep: {', '.join(one.reasons)}" if one.reasons else "goes: no rule keeps it"
        name = f" ({one.version.name})" if one.version.name else ""
        text.echo(
            f"{one.version.seq:>12}  {_utc(one.version.time_ns)}  {why}{_until(found, one)}{name}"
        )
    if found.looked_until_ns is None and found.has_rules:
        text.echo(
            "until when each is kept is not known: [versions] has no schedule (every = ...) by "
            "which further ones are made"
        )
    for word, at_ns in (("made", found.next_make_ns), ("pruned", found.next_prune_ns)):
        if at_ns is not None:
            text.echo(f"next {word} by the layer at {_utc(at_ns)}")


def _until(found: "PolicyForecast", one: "RetainedVersion") -> str:
    words = ""
    if one.let_go_ns is not None:
        words = f"; let go on {_utc(one.let_go_ns)[:10]}"
    elif one.reasons and found.looked_until_ns is not None and not one.is_for_good:
        words = f"; not before {_utc(found.looked_until_ns)[:10]}"
    if one.prune_ns is not None:
        words += f"; deleted at {_utc(one.prune_ns)}"
    return words


def _utc(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M UTC")


@version.command(short_help="One version in full.")
@click.argument("volume")
@click.argument("wanted", metavar="VERSION")
@_KEY_FILE
@_CONFIG
@_AS_JSON
def show(
    volume: str, wanted: str, key_file: Path | None, config: Path | None, as_json: bool
) -> None:
    """Show what is known of one version of VOLUME, or of those in a store that VOLUME names. Its
    root hash is the same on every node that makes the version of this seq.

    \b
    Examples:
      fusejournal version show srv-data before-upgrade
      fusejournal version show srv-data 4711 --json
    """
    listed = open_versions(volume, key_file, config, raise_interrupt).find(wanted)
    one = listed.version
    if as_json:
        text.echo_json(listed.to_json())
        return
    rows = {
        "volume": str(one.uuid),
        "name": one.name or "-",
        "position": str(Position(one.epoch, one.seq, one.chain)),
        "time": text.moment(one.time_ns),
        "made": f"{text.moment(one.made_ns)} by {one.made_by}",
        "made of": f"version {one.parent}" if one.parent else "the journal",
        "files": f"{one.file_count:,} with {text.count(one.name_count, 'name')}",
        "content": text.size(one.content_bytes),
        "added": text.size(one.added_bytes),
        "protected": "yes" if listed.is_protected else "no",
        "history": _HISTORIES[listed.history].strip(" ()") or f"{listed.history} one",
        "root": one.root,
    }
    for label, value in rows.items():
        text.echo(f"{label:<10} {value}")


@version.command(short_help="What differs between two versions.")
@click.argument("volume")
@click.argument("version1")
@click.argument("version2")
@click.argument("path", required=False)
@_AS_JSON
def diff(volume: str, version1: str, version2: str, path: str | None, as_json: bool) -> None:
    """Show what differs between two versions of VOLUME, a line a file, as diff does: A added,
    D removed, R renamed, M content, P mode, owner, xattrs, or an mtime that was set. It costs what
    differs, not what there is. PATH: only it and what is below, by its old or new name.

    \b
    Examples:
      fusejournal version diff srv-data monday tuesday
      fusejournal version diff srv-data 4711 tuesday home/anna --json
    """
    # Only here: the other commands need no entries.
    from fusejournal.cli import entries

    versions = VolumeVersions(volume, raise_interrupt)
    with watched("comparing", as_json, versions.traffic) as progress:
        changes = versions.changes(version1, version2, path, progress)
    for change in changes:
        if as_json:
            text.echo_json(change.trees_to_json())
        else:
            link = "  (hard link)" if change.link else ""
            text.echo(entries.changed_path(change) + link)


@version.command(short_help="Read a version back and check it.")
@click.argument("volume")
@click.argument("wanted", metavar="VERSION")
@click.option("--data", is_flag=True, help="Read every chunk of every file, too.")
@_KEY_FILE
@_CONFIG
@_AS_JSON
def verify(
    volume: str,
    wanted: str,
    data: bool,
    key_file: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Read back all that a version of VOLUME relies on, and check that it is what was put there: by
    hash, block by block, and that its two trees agree. Without --data, contents are looked up, not
    read. The first fault ends it, with its name and exit code 42.

    \b
    Examples:
      fusejournal version verify srv-data before-upgrade
      fusejournal version verify srv-data before-upgrade --data
    """
    versions = open_versions(volume, key_file, config, raise_interrupt)
    with watched("verifying files", as_json, versions.traffic) as progress:
        found = versions.verify(wanted, progress, with_data=data)
    if as_json:
        text.echo_json(found._asdict())
        return
    read = f"; {text.count(found.chunks, 'chunk')}, {text.size(found.bytes)} read" if data else ""
    text.echo(
        f"version {wanted} is whole: {text.count(found.files, 'file')}, "
        f"{text.count(found.names, 'name')}{read}"
    )


@version.command(short_help="Keep a version from being deleted.")
@click.argument("volume")
@click.argument("wanted", metavar="VERSION")
@click.option("--off", is_flag=True, help="Protect it no longer.")
def protect(volume: str, wanted: str, off: bool) -> None:
    """Protect a version of VOLUME from being deleted.

    \b
    Examples:
      fusejournal version protect srv-data before-upgrade
      fusejournal version protect srv-data before-upgrade --off
    """
    name = VolumeVersions(volume, raise_interrupt).protect(wanted, on=not off)
    text.echo(f"version {name} is {'no longer ' if off else ''}protected")


@version.command(short_help="Delete a version.")
@click.argument("volume")
@click.argument("wanted", metavar="VERSION")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(volume: str, wanted: str, yes: bool) -> None:
    """Delete a version of VOLUME: it cannot be restored any more. What no other version has stays
    in the store until 'version collect'. One that cannot be read is deleted by its key, as 'version
    list' names it.

    \b
    Examples:
      fusejournal version delete srv-data before-upgrade
    """
    versions = VolumeVersions(volume, raise_interrupt)
    _, name = versions.key_to_delete(wanted)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"version {name} would be deleted: --yes says so without a terminal")
        click.confirm(f"delete version {name}?", abort=True, err=True)
    versions.delete(wanted)
    text.echo(f"deleted version {name}")


@version.command(short_help="Free what no version has any more.")
@click.argument("volume")
@click.option("--dry-run", is_flag=True, help="Say what would go; change nothing.")
@click.option("--forget", metavar="NODE", help="Those at work on this node are no more.")
@_AS_JSON
def collect(volume: str, dry_run: bool, forget: str | None, as_json: bool) -> None:
    """Free what no version has any more in the store of VOLUME's versions, which other volumes may
    share: packs of which much is unused are rewritten, then removed.

    Others may create, read and list meanwhile. It waits for those who began before it could tell
    them: it then ends, says for whom, and goes on when it is given again. One whose process has
    ended on this machine is not waited for; one on a machine that is lost is, until --forget.
    Stopped at any point, it goes on when it is given again.

    \b
    Examples:
      fusejournal version collect srv-data --dry-run
      fusejournal version collect srv-data
      fusejournal version collect srv-data --forget east-srv-data
    """
    lower_priority()
    versions = VolumeVersions(volume, raise_interrupt)
    with watched("marking blocks", as_json, versions.traffic) as progress:
        found = versions.collect(progress, forget=forget, dry_run=dry_run)
    warn_of_unreadable(volume, found.unreadable)
    if as_json:
        text.echo_json(found.to_json())
    elif dry_run:
        text.echo(
            f"would remove or rewrite {text.count(found.planned_packs, 'pack')}, and free "
            f"{text.size(found.removed_bytes)}"
        )
    elif found.waiting_for:
        names = ", ".join(f"{one.node} (pid {one.pid})" for one in found.waiting_for)
        text.echo(
            f"nothing is removed while versions are read, by {names}: say it again after that"
            if not found.planned_packs
            else f"{text.count(found.planned_packs, 'pack')} to go, which wait for {names}: say it "
            "again when those are done"
        )
    else:
        text.echo(
            f"removed {text.count(found.removed_packs, 'pack')} with "
            f"{text.size(found.removed_bytes)}, rewrote {text.size(found.rewritten_bytes)}"
        )


version.add_command(store)
version.add_command(key)
