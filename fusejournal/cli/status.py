"""``fusejournal status``."""

import os
import shutil
from typing import Any

import click

from fusejournal.cli import text
from fusejournal.control.client import ask
from fusejournal.errors import JournalError, NotRunningError
from fusejournal.journal.journal import Journal
from fusejournal.journal.segment_writer import JournalOptions
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.layer.connection import is_held
from fusejournal.nfs.exports import is_exported
from fusejournal.node.state_dir import VolumeState, all_volumes, copies_of, find_volume
from fusejournal.types import Seq


@click.command(short_help="How a volume is, or all of them.")
@click.argument("volume", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object (an array without VOLUME).")
def status(volume: str | None, as_json: bool) -> None:
    """Say how VOLUME is, or, without it, how all volumes are, a line each.

    \b
    Examples:
      fusejournal status
      fusejournal status /srv/data
      fusejournal status srv-data --json
    """
    if volume is None:
        reports = [report(state) for state in all_volumes()]
        if as_json:
            text.echo_json(reports)
        elif not reports:
            text.echo("no volumes yet: 'fusejournal mount BACKING MOUNTPOINT' makes one")
        else:
            _show_all(reports)
        return
    found = report(find_volume(volume))
    if as_json:
        text.echo_json(found)
    else:
        _show(found)


def report(state: VolumeState) -> dict[str, Any]:
    """What there is to know of a volume: from its layer, or from disk when none is running; and
    what here looks like the same volume."""
    told = _report(state)
    told["degraded"] = told["degraded"] + [
        f"{copy} has a copy of its state: keep it somewhere else" for copy in copies_of(state)
    ]
    return told


def _report(state: VolumeState) -> dict[str, Any]:
    try:
        return ask(state.directory, "status")
    except NotRunningError:
        holder = state.holder()
        if holder is None and is_held(state.directory / "connection"):
            return _report_from_disk(state, "held", None)
        return _report_from_disk(
            state, "starting" if holder else "stopped", holder.get("pid") if holder else None
        )


def _report_from_disk(state: VolumeState, condition: str, pid: int | None) -> dict[str, Any]:
    degraded: list[str] = []
    journal = None
    clean = True
    try:
        if any(state.journal_dir.glob("*.fj*")):
            is_mirror = state.role == "mirror"
            page = None
            if state.marks.exists():
                page = WatermarkPage(state.marks, state.created_ns)
            journal = Journal.open(
                state.journal_dir,
                state.uuid,
                JournalOptions(),
                unclean_machine=False,
                read_only=True,
                is_copy=is_mirror,
                known_durable=page.durable_seq if page is not None else Seq(0),
            )
            clean = journal.ends_clean
            if page is not None:
                if is_mirror:
                    clean = page.stopped_seq == journal.head_seq
                page.close()
            if journal.damage is not None:
                degraded.append(f"{journal.damage.verdict}: {journal.damage}")
            elif condition == "held":
                degraded.append(
                    f"its layer died, and its users wait: 'fusejournal mount {state.name}' goes on"
                )
            elif not clean and condition == "stopped":
                degraded.append("was not stopped in order; the next mount recovers it")
    except (JournalError, OSError) as error:
        degraded.append(str(error))
    return {
        "name": state.name,
        "uuid": str(state.uuid),
        "role": state.role,
        "epoch": journal.epoch if journal else None,
        "pid": pid,
        "backing": str(state.backing),
        "mountpoint": str(state.mountpoint),
        "state": condition,
        "durability": None,
        "exported": is_exported(state.mountpoint),
        "held": condition == "held",
        "live_since": None,
        "head_seq": journal.head_seq if journal else None,
        "durable_seq": (journal.head_seq if clean else journal.durable_seq) if journal else None,
        "checkpoint_seq": journal.head_seq if journal and clean and not state.is_mirror else None,
        "entries_per_second": 0.0,
        "journal_bytes": journal.total_bytes if journal else 0,
        "segments": journal.segment_count if journal else 0,
        "disk_free_bytes": shutil.disk_usage(state.directory).free,
        "backing_free_bytes": _free(state),
        "replication": None,
        "degraded": degraded,
        "repairs": [],
    }


def _free(state: VolumeState) -> int | None:
    if state.backing == state.mountpoint:
        return None  # under a dead mount there is no way to ask
    try:
        space = os.statvfs(state.backing)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize


def _show_all(reports: list[dict[str, Any]]) -> None:
    rows: list[tuple[str, ...]] = [("VOLUME", "STATE", "ROLE", "HEAD", "JOURNAL", "MOUNTPOINT", "")]
    rows += [_row(one) for one in reports]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        text.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    head, size = str(one["head_seq"] or "-"), text.size(one["journal_bytes"])
    degraded = "; ".join(one["degraded"])
    return (one["name"], one["state"], one["role"], head, size, one["mountpoint"], degraded)


def _exported(one: dict[str, Any]) -> str:
    words = "by NFS" if one["exported"] else "no"
    if one["durability"]:
        words += f"; durability {one['durability']}"
    return words + ("; the mount outlives its layer" if one["held"] else "")


def _replication(told: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    if told["listen"] is not None:
        plain = ", without TLS on loopback" if told["insecure"] else ""
        lines.append(("listens", f"on {told['listen']}{plain}, as {told['node']}"))
    if told["mirrors"]:
        waiting = text.count(told["mirrors_waiting"], "caller")
        lines.append(
            (
                "waits for",
                f"{text.count(told['mirrors'], 'mirror')}, which have {told['mirrors_seq']:,} "
                f"entries on their disks; {waiting} waiting",
            )
        )
    if (mirror := told.get("mirror")) is not None:
        lines += _mirror(mirror)
    for peer in told["peers"]:
        lines += _peer(peer)
    return lines


def _mirror(mirror: dict[str, Any]) -> list[tuple[str, str]]:
    primary = mirror["primary"] or "none yet"
    if mirror["address"] is not None:
        primary += f" at {mirror['address']}, heard {mirror['heard_seconds_ago'] or 0:.0f} s ago"
    lines = [
        ("primary", f"{primary}: {_state(mirror)}"),
        (
            "",
            f"received {mirror['received_seq']:,} of {mirror['source_head_seq']:,} entries, "
            f"applied {mirror['applied_seq']:,}",
        ),
        (
            "",
            f"behind by {text.count(mirror['lag_entries'], 'entry', 'entries')}, "
            f"{mirror['lag_seconds']:.1f} s",
        ),
        ("", _speed(mirror)),
    ]
    lines += [("", mirror[key]) for key in ("trouble", "last_error") if mirror[key]]
    return lines


def _state(told: dict[str, Any]) -> str:
    state: str = told["state"]
    if state == "catching up" and told["eta_seconds"] is not None:
        state += f", {text.duration(told['eta_seconds'])} to go"
    return state


def _speed(told: dict[str, Any]) -> str:
    bytes_rate = text.size(told["bytes_per_second"])
    return f"{told['entries_per_second']:,.0f} entries/s, {bytes_rate}/s"


def _peer(peer: dict[str, Any]) -> list[tuple[str, str]]:
    state = _state(peer)
    if peer["retry_in_seconds"] is not None:
        state += f", tries again in {peer['retry_in_seconds']:.1f} s"
    saved = ""
    if peer["content_bytes"]:
        share = 100 * peer["sent_bytes"] / peer["content_bytes"]
        saved = f", {share:.0f} % of their size"
    lines = [
        (f"peer {peer['name']}", f"{peer['address']}: {state}"),
        (
            "",
            f"shipped {peer['shipped_seq']:,}, acked {peer['acked_seq']:,}, "
            f"applied {peer['applied_seq']:,}",
        ),
        (
            "",
            f"behind by {text.count(peer['lag_entries'], 'entry', 'entries')}, "
            f"{text.size(peer['lag_bytes'])}, {peer['lag_seconds']:.1f} s",
        ),
        (
            "",
            f"{_speed(peer)}; {text.count(peer['batches'], 'batch', 'batches')} sent{saved}",
        ),
    ]
    if peer["last_error"]:
        lines.append(("", f"last error: {peer['last_error']}"))
    if peer["advice"]:
        lines.append(("", f"what to do: {peer['advice']}"))
    return lines


def _show(one: dict[str, Any]) -> None:
    def number(key: str) -> str:
        return "-" if one[key] is None else f"{one[key]:,}"

    backing_free = (
        "-" if one["backing_free_bytes"] is None else text.size(one["backing_free_bytes"])
    )
    lines = [
        ("volume", f"{one['name']}  ({one['uuid']})"),
        ("state", one["state"] + (f", process {one['pid']}" if one["pid"] else "")),
        ("role", f"{one['role']}, epoch {number('epoch')}"),
        ("exported", _exported(one)),
        ("mountpoint", one["mountpoint"]),
        ("backing", f"{one['backing']}  ({backing_free} free)"),
        (
            "entries",
            f"{number('head_seq')} (head), {number('durable_seq')} durable, "
            f"checkpoint at {number('checkpoint_seq')}",
        ),
        ("rate", f"{one['entries_per_second']:,} entries/s"),
        (
            "journal",
            f"{text.size(one['journal_bytes'])} in {text.count(one['segments'], 'segment')}",
        ),
        ("disk left", f"{text.size(one['disk_free_bytes'])} for the journal"),
    ]
    if one["replication"] is not None:
        lines += _replication(one["replication"])
    for key, value in lines:
        text.echo(f"{key:<11} {value}")
    for key in ("degraded", "repairs"):
        for value in one[key]:
            text.echo(f"{key:<12}{value}", fg="red" if key == "degraded" else "yellow")
    if not one["degraded"]:
        text.echo(f"{'health':<12}all is well")
