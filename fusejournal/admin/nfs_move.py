"""NFS across a change of the role: nfsd rests while it goes on, so that clients wait and get no
wrong answer, and then gives the locks back that its clients had on the server before.

========  =========  ==========================================================================
when      role       what is done
========  =========  ==========================================================================
before    mirror     nfsd stops; the volume keeps the names of its clients
before    primary    nfsd stops, where it serves this mirror
after     primary    in a new reign: the clients that came with the volume are added to those of
                     the server, and nfsd starts anew, with a grace period; from then on their
                     names are kept in the volume
after     mirror     nfsd starts, where something is exported
========  =========  ==========================================================================

Blocks; for the command line. Each step may be done again. Source: RFC 8881 (8.4.2, 2.10.4),
nfsd(7), sm-notify(8)."""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import NamedTuple

from fusejournal.errors import ExportError
from fusejournal.nfs import client_records, client_watch, exports, nfsd
from fusejournal.nfs.connections import established, have_end, most_likely


class RoleChange(NamedTuple):
    """A change of a volume's role, as it is reported to its hooks."""

    when: str
    """``before`` or ``after``."""
    role: str
    """``primary`` or ``mirror``: what the node becomes."""
    reign: str
    volume: str
    mountpoint: Path


def follow(change: RoleChange) -> list[str]:
    """Does what is due in NFS at *change*; returns what was done, a line each. Raises ExportError,
    OSError."""
    if change.when == "before":
        return _rest(change)
    return _serve(change) if change.role == "primary" else _serve_mirror()


def _rest(change: RoleChange) -> list[str]:
    client_watch.end(change.volume)
    if not nfsd.threads():
        return ["nfsd does not run"]
    if change.role == "primary":
        if not exports.is_served(change.mountpoint):
            return [f"{change.mountpoint} is not served yet"]
        nfsd.stop()
        return ["nfsd rests"]
    failures: list[str] = []
    known = client_records.ClientRecords("")
    with _noting(failures):
        known = client_records.load(change.mountpoint) or known
    opened, idle = nfsd.times_opened(), nfsd.idle_clients()
    # Where the floating address is gone by now, nfsd has closed those to it, which clients cannot
    # have heard (fs/nfsd/nfssvc.c, nfsd_inetaddr_event).
    connections = most_likely({*known.connections, *established()})
    nfsd.stop()
    words = ""
    with _noting(failures):
        # Now none comes or goes any more.
        now = client_records.of_server(known.reign, change.volume)
        now = now._replace(connections=connections)
        if opened is not None and nfsd.times_opened() == opened:
            # They have nothing to take back, and all others would wait until they say so.
            now = now.without(idle)
        client_records.save(change.mountpoint, now)
        words = f"{_count(now)} may take their locks back elsewhere"
    if not words:
        # No reason to refuse the change, because users of the volume can bring it about; the new
        # primary finds it, too, and tells of it.
        words = f"clients may lose their locks: {'; '.join(dict.fromkeys(failures))}"
    return [f"nfsd rests; {words}"]


def _count(records: client_records.ClientRecords) -> str:
    return f"{len(records.v4)} NFSv4 and {len(records.v3)} NFSv3 clients"


def _serve(change: RoleChange) -> list[str]:
    told: list[str] = []
    failures: list[str] = []
    records = None
    with _noting(failures):
        records = client_records.load(change.mountpoint)
        told += _take_over(change, records)
    if not nfsd.threads():
        # No client's connection is good any more. Soon the volume has this server's own.
        try:
            client_records.put_aside(records, change.volume)
        except OSError as error:
            told.append(f"NFS clients come later: {error}")
    exports.read_anew()
    if not nfsd.threads() and exports.active():
        nfsd.start()
        told.append("nfsd serves")
        with _noting(failures):
            if not client_records.of_server("", change.volume).v3:
                nfsd.end_lock_grace()
    client_watch.begin(change.mountpoint, change.volume, change.reign)
    if failures:
        raise ExportError(f"clients may have lost their locks: {'; '.join(failures)}")
    _check_reclaim()
    return told


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """Has what fails noted in *failures*, because clients without locks are better off than those
    without a server, or with one that cannot be changed for another."""
    try:
        yield
    except (ExportError, OSError) as error:
        failures.append(str(error))


def _take_over(change: RoleChange, records: client_records.ClientRecords | None) -> list[str]:
    """Have nfsd begin anew with *records*, the clients that came with the volume, unless the layer
    alone was started again, for which all is as it was. Raises ExportError, OSError."""
    if records is None or records.reign == change.reign:
        return []
    if nfsd.threads():
        nfsd.stop()
    client_records.add_to_server(records, change.volume)
    return [f"{_count(records)} came with the volume"]


def _check_reclaim() -> None:
    """Raises ExportError where clients could not take their locks back from another server."""
    if not client_records.keeps_v4():
        raise ExportError(
            "nfsdcld keeps no names of NFSv4 clients here, so they lose their locks in a move: "
            "systemctl enable --now nfsdcld"
        )
    if not nfsd.scope():
        raise ExportError(
            "NFSv4 clients lose their locks in a move, because the servers have no scope in "
            "common: give [nfsd] scope = NAME in /etc/nfs.conf, the same on all of them"
        )


def _serve_mirror() -> list[str]:
    exports.read_anew()
    if nfsd.threads() or not exports.active():
        return []
    nfsd.start()
    return ["nfsd serves"]


def let_go(volume: str, address: IPv4Interface | IPv6Interface) -> list[str]:
    """Has the clients that came with *volume*, and were connected to *address* when it was another
    server's, or this one's before nfsd began anew, find that they are so no more. Returns what was
    done. Raises ExportError, OSError."""
    records = client_records.load_aside(volume)
    told = have_end(records.connections, address.ip) if records is not None else []
    if records is None or not told:
        return []
    # Once is enough; the same ends may be connected anew by the next time.
    left = tuple(one for one in records.connections if one not in told)
    client_records.put_aside(records._replace(connections=left), volume)
    return [f"{len(told)} NFS connections are ended"]


def notify(volume: str, address: IPv4Interface | IPv6Interface) -> list[str]:
    """Has the NFSv3 clients that came with *volume* told, from *address*, that they are to take
    their locks back; goes on in the background. Returns what was done. Raises ExportError."""
    directory = client_records.notified(volume)
    if not any(directory.glob("sm*/*")):
        return ["no NFSv3 client has to be told"]
    code, words = nfsd.run("sm-notify", "-f", "-P", str(directory), "-v", str(address.ip))
    if code:
        raise ExportError(
            f"sm-notify: {'; '.join(words)}: {address.ip} needs a name, in /etc/hosts or the DNS"
        )
    return ["NFSv3 clients are told"]
