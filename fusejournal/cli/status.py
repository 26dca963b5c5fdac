"""``fusejournal status``."""

import time
from collections.abc import Iterator, Sequence

import click

from fusejournal.admin.peers import list_peers
from fusejournal.admin.status import all_statuses, volume_status
from fusejournal.cli import text
from fusejournal.node.registry import find_volume
from fusejournal.node.volume_status import (
    BranchesStatus,
    Condition,
    ScrubStatus,
    VersionStatus,
    VolumeStatus,
)
from fusejournal.replication.states import PeerState
from fusejournal.replication.status import MirrorStatus, PeerInfo, PeerStatus, ReplicationStatus


@click.command(short_help="How a volume is, or all of them.")
@click.argument("volume", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object (an array without VOLUME).")
def status(volume: str | None, as_json: bool) -> None:
    """Show how VOLUME is, or, without it, how all volumes are, a line each.

    \b
    Examples:
      fusejournal status
      fusejournal status /srv/data
      fusejournal status srv-data --json
    """
    if volume is None:
        found = all_statuses()
        if as_json:
            text.echo_json([one.to_json() for one in found])
        elif not found:
            text.echo("no volumes yet: 'fusejournal mount BACKING MOUNTPOINT' makes one")
        else:
            _show_all(found)
        return
    state = find_volume(volume)
    one = volume_status(state)
    if as_json:
        text.echo_json(one.to_json())
    else:
        _show(one, list_peers(state).peers if one.state is Condition.STOPPED else ())


def _show_all(statuses: list[VolumeStatus]) -> None:
    rows: list[tuple[str, ...]] = [("VOLUME", "STATE", "ROLE", "HEAD", "JOURNAL", "MOUNTPOINT", "")]
    rows += [_row(one) for one in statuses]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        text.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _row(one: VolumeStatus) -> tuple[str, ...]:
    head, size = str(one.head_seq or "-"), text.size(one.journal_bytes)
    degraded = "; ".join(one.degraded)
    return (one.name, one.state, one.role, head, size, one.mountpoint, degraded)


def _exported(one: VolumeStatus) -> str:
    words = "by NFS" if one.exported else "no"
    if one.export_lacks is not None:
        words = f"in a file only: {one.export_lacks}"
    if one.durability:
        words += f"; durability {one.durability}"
    return words + ("; the mount outlives its layer" if one.held else "")


def _replication(told: ReplicationStatus) -> list[tuple[str, str]]:
    lines = []
    if told.listen is not None:
        plain = ", without TLS on loopback" if told.insecure else ""
        lines.append(("listens", f"on {told.listen}{plain}, as {told.node}"))
    if told.mirrors:
        waiting = text.count(told.mirrors_waiting, "caller")
        lines.append(
            (
                "waits for",
                f"{text.count(told.mirrors, 'mirror')}, which have {told.mirrors_seq:,} "
                f"entries on their disks; {waiting} waiting",
            )
        )
    if (mirror := told.mirror) is not None:
        lines += _mirror(mirror)
    for peer in told.peers:
        lines += _peer(peer)
    return lines


def _mirror(mirror: MirrorStatus) -> list[tuple[str, str]]:
    primary = mirror.primary or "none yet (if the two are not paired: 'fusejournal pair')"
    if mirror.address is not None:
        primary += f" at {mirror.address}, heard {mirror.heard_seconds_ago or 0:.0f} s ago"
    elif mirror.heard_seconds_ago is not None:
        primary += f", heard {text.duration(mirror.heard_seconds_ago)} ago"
    told_of = " of those that it has told of" if mirror.address is None else ""
    lines = [
        ("primary", f"{primary}: {_state(mirror)}"),
        (
            "",
            f"received {mirror.received_seq:,} of {mirror.source_head_seq:,} entries, "
            f"applied {mirror.applied_seq:,}",
        ),
        (
            "",
            f"behind by {text.count(mirror.lag_entries, 'entry', 'entries')}{told_of}, "
            f"{mirror.lag_seconds:.1f} s",
        ),
        ("", _speed(mirror)),
    ]
    lines += [("", line) for line in (mirror.trouble, mirror.last_error) if line]
    return lines


def _state(told: PeerStatus | MirrorStatus) -> str:
    state: str = told.state
    if state == PeerState.CATCHING_UP and told.eta_seconds is not None:
        state += f", {text.duration(told.eta_seconds)} to go"
    return state


def _speed(told: PeerStatus | MirrorStatus) -> str:
    bytes_rate = text.size(told.bytes_per_second)
    return f"{told.entries_per_second:,.0f} entries/s, {bytes_rate}/s"


def _peer(peer: PeerStatus) -> list[tuple[str, str]]:
    state = _state(peer)
    if peer.retry_in_seconds is not None:
        state += f", tries again in {peer.retry_in_seconds:.1f} s"
    saved = ""
    if peer.content_bytes:
        share = 100 * peer.sent_bytes / peer.content_bytes
        saved = f", {share:.0f} % of their size"
    lines = [
        (f"peer {peer.name}", f"{peer.address}: {state}"),
        (
            "",
            f"shipped {peer.shipped_seq:,}, acked {peer.acked_seq:,}, applied {peer.applied_seq:,}",
        ),
        (
            "",
            f"behind by {text.count(peer.lag_entries, 'entry', 'entries')}, "
            f"{text.size(peer.lag_bytes)}, {peer.lag_seconds:.1f} s",
        ),
        (
            "",
            f"{_speed(peer)}; {text.count(peer.batches, 'batch', 'batches')} sent{saved}",
        ),
    ]
    if peer.last_error:
        lines.append(("", f"last error: {peer.last_error}"))
    if peer.advice:
        lines.append(("", f"what to do: {peer.advice}"))
    lines += [("", f"note: {note}") for note in peer.notes]
    return lines


def _branches(told: BranchesStatus, name: str) -> str:
    words = f"{told.count} ({text.size(told.bytes)})" if told.count else "none"
    if told.keep_bytes is not None and told.keep_days is not None:
        words += f"; kept up to {text.size(told.keep_bytes)} and {told.keep_days:g} days"
    return words + (f": fusejournal branch list {name}" if told.count else "")


def _versions(told: VersionStatus) -> Iterator[tuple[str, str]]:
    """The lines about versions and their store."""
    if told.reachable is None:
        yield "versions", f"in {told.store}, not looked at yet"
        return
    since = text.moment(round((told.reachable_since or 0) * 1e9))[:19].replace("T", " ")
    reached = "reached" if told.reachable else "out of reach"
    yield "versions", f"{told.count:,} in {told.store}, {reached} since {since}"
    if told.last_seq is not None and told.last_time_ns is not None:
        name = f" ({told.last_name})" if told.last_name else ""
        age = text.duration(max(0.0, time.time() - told.last_time_ns / 1e9))
        first = text.moment(told.first_time_ns or 0)[:19].replace("T", " ")
        yield (
            "",
            f"the newest is of seq {told.last_seq:,}{name}, {age} ago; the oldest of {first}; "
            f"{told.protected:,} protected",
        )
    now = time.time()
    plans = []
    if told.working is not None:
        plans.append(f"at work: {told.working}")
    for word, at in (("made", told.next_make), ("pruned", told.next_prune)):
        if at is not None:
            plans.append(f"next {word} in {text.duration(max(0.0, at - now))}")
    if told.pruned is not None:
        freed = text.size(told.freed_bytes)
        plans.append(f"pruned {text.duration(max(0.0, now - told.pruned))} ago: {freed} freed")
    if plans:
        yield "", "; ".join(plans)
    for why in told.held_by:
        yield "", f"the journal is held back: {why}"
    if told.waiting_for:
        yield "", f"the rest that can be freed waits for {', '.join(told.waiting_for)}"


def _scrub(told: ScrubStatus) -> str:
    if told.finished is None:
        words = f"begun {text.moment(round(told.started * 1e9))}, stopped at the {told.phase}"
    else:
        words = text.moment(round(told.finished * 1e9))
    faults = text.count(len(told.faults), "fault") if told.faults else "nothing wrong"
    mended = f", {text.count(told.repaired, 'file')} repaired" if told.repaired else ""
    return f"{words}: {text.count(told.files, 'file')}, {text.size(told.bytes)}; {faults}{mended}"


def _waiting(peer: PeerInfo) -> tuple[str, str]:
    """The line of a peer of a volume that is stopped."""
    words = peer.address or "connects to this node"
    if peer.address is None and peer.return_address is not None:
        words += f" (shipped to at {peer.return_address} once this is the primary)"
    if peer.fingerprint is None:
        words += ", not paired"
    elif peer.address is not None:
        words += f", acked {peer.acked_seq:,}"
    if peer.paused:
        words += ", paused"
    return f"peer {peer.name}", words + (f"; {peer.needs_copy}" if peer.needs_copy else "")


def _show(one: VolumeStatus, waiting: Sequence[PeerInfo]) -> None:
    def number(value: int | None) -> str:
        return "-" if value is None else f"{value:,}"

    backing_free = "-" if one.backing_free_bytes is None else text.size(one.backing_free_bytes)
    lines = [
        ("volume", f"{one.name}  ({one.uuid})"),
        ("state", one.state + (f", process {one.pid}" if one.pid else "")),
        ("role", f"{one.role}, epoch {number(one.epoch)}"),
        ("exported", _exported(one)),
        ("mountpoint", one.mountpoint),
        ("backing", f"{one.backing}  ({backing_free} free)"),
        ("state files", one.state_directory or "-"),
        *([("configuration", one.configuration)] if one.configuration is not None else []),
        (
            "entries",
            f"{number(one.head_seq)} (head), {number(one.durable_seq)} durable, "
            f"checkpoint at {number(one.checkpoint_seq)}",
        ),
        ("rate", f"{one.entries_per_second:,} entries/s"),
        (
            "journal",
            f"{text.size(one.journal_bytes)} in {text.count(one.segments, 'segment')}",
        ),
        ("disk left", f"{text.size(one.disk_free_bytes)} for the journal"),
    ]
    if one.base_seq is not None:
        when = text.moment(one.base_time_ns or 0)[:19].replace("T", " ")
        lines.append(("covers", f"seq {one.base_seq:,} ({when}) and later; before: versions"))
    if one.limits is not None:
        lines.append(("holds", ", ".join(one.limits.describe())))
    if one.replication is not None:
        lines += _replication(one.replication)
    lines += map(_waiting, waiting)
    if one.branches is not None:
        lines.append(("branches", _branches(one.branches, one.name)))
    if one.versions is not None:
        lines += _versions(one.versions)
    if one.scrub is not None:
        lines.append(("last scrub", _scrub(one.scrub)))
    for key, value in lines:
        text.echo(f"{key:<11} {value}")
    for title, values, colour in (
        ("degraded", one.degraded, "red"),
        ("repairs", one.repairs, "yellow"),
    ):
        for value in values:
            text.echo(f"{title:<12}{value}", fg=colour)
    if not one.degraded:
        text.echo(f"{'health':<12}all is well")
