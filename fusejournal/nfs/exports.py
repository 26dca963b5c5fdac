"""The exports of the NFS server: what is exported, by which file and line; the line of a volume.

Knows /etc/exports, /etc/exports.d/*.exports and /var/lib/nfs/etab, which holds what is exported
now, by a file or by hand. Changes them only by exportfs, and writes one file a volume,
exports.d/fusejournal-NAME.exports. What the kernel does with them is in nfsd.py.

Exports are distinguished by their path as it is written; no path is touched, because a mount may
hang. Blocks; for the command line, or a thread.

Source: exports(5), exportfs(8); nfs-utils' support/nfs/exports.c and xio.c for quoting (double
quotes, three octal digits after a backslash), comments and continued lines."""

import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from fusejournal.disk import files
from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.errors import (
    ExportError,
    FusejournalError,
    NoNfsServerError,
    UsageError,
)
from fusejournal.nfs import nfsd

_MARK = "# Written by 'fusejournal export"
_CHOSEN = {
    "rw": "leave it out",
    "ro": "use --ro",
    "sync": "leave it out",
    "async": "use --async",
    "root_squash": "leave it out",
    "no_root_squash": "use --no-root-squash",
    "fsid": "it is the volume's UUID",
    "uuid": "it is the volume's UUID",
    "mp": "it is always there",
    "mountpoint": "it is always there",
    "no_subtree_check": "it is always there",
    "subtree_check": "it makes handles of renamed files stale",
}
"""Options that are not for ``--option``, and what to do instead."""


@dataclass(frozen=True)
class Export:
    """One path exported to one client (a host, network, wildcard or @netgroup)."""

    path: Path
    client: str
    options: tuple[str, ...]
    file: Path
    line: int

    @property
    def sync(self) -> bool:
        """True if nfsd answers a change only when it is durable: the default."""
        return [o for o in self.options if o in ("sync", "async")][-1:] != ["async"]

    @property
    def fsid(self) -> str | None:
        """The fsid in one way of writing it, or None."""
        for option in reversed(self.options):
            key, _, text = option.partition("=")
            if key == "fsid":
                digits = re.sub(r"[^0-9a-f]", "", text.lower())
                return digits if len(digits) == 32 else {"root": "0"}.get(text, text)
        return None

    def reaches(self, mountpoint: Path) -> bool:
        """Returns True if clients of it see what is mounted at *mountpoint*: at its own path,
        inside it, or above it where it crosses mounts."""
        if self.path.is_relative_to(mountpoint):
            return True
        crosses = [o for o in self.options if o in ("crossmnt", "nocrossmnt")][-1:] == ["crossmnt"]
        return crosses and mountpoint.is_relative_to(self.path)

    @property
    def where(self) -> str:
        """The file and line, for people."""
        if self.file == _etab():
            return f"exported by hand ({self.client}:{self.path}, see exportfs -v)"
        return f"{self.file} line {self.line}"


def _etab() -> Path:
    return nfsd.root() / "var/lib/nfs/etab"


def own_file(name: str) -> Path:
    """The file of the volume *name*."""
    return nfsd.root() / "etc/exports.d" / f"fusejournal-{name}.exports"


# -- reading ---------------------------------------------------------------------------------------


def parse(content: bytes, file: Path) -> list[Export]:
    """The exports that *content* of *file* describes."""
    found = []
    for line, words in _lines(content):
        path = Path(os.path.normpath(os.fsdecode(words[0])))
        defaults: tuple[str, ...] = ()
        clients = 0
        for word in map(os.fsdecode, words[1:]):
            if word.startswith("-"):
                defaults = tuple(filter(None, word[1:].split(",")))
                continue
            client, _, own = word.partition("(")
            options = (*defaults, *filter(None, own.rstrip(")").split(",")))
            found.append(Export(path, client or "*", options, file, line))
            clients += 1
        if not clients:
            found.append(Export(path, "*", defaults, file, line))
    return found


def _lines(content: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """The words of each line with its number, quotes and escapes resolved."""
    words: list[bytes] = []
    number = first = 1
    # A word; the end of a line; a comment. Blanks and continued lines are between them.
    for match in re.finditer(rb'\\\n|\n|#[^\n]*|(?:"[^"\n]*"?|\\(?!\n)|[^\s"\\])+', content):
        text = match[0]
        if text == b"\n" and words:
            yield first, words
            words = []
        if text.endswith(b"\n"):
            number += 1
        elif not text.startswith(b"#"):
            if not words:
                first = number
            words.append(
                re.sub(
                    rb"\\([0-3][0-7]{2})",
                    lambda code: bytes([int(code[1], 8)]),
                    text.replace(b'"', b""),
                )
            )
    if words:
        yield first, words


def _read(file: Path) -> list[Export]:
    try:
        return parse(file.read_bytes(), file)
    except (FileNotFoundError, NotADirectoryError):
        return []


def configured() -> list[Export]:
    """Returns the exports in the files, in the order in which exportfs reads them."""
    etc = nfsd.root() / "etc"
    found = _read(etc / "exports")
    for file in sorted((etc / "exports.d").glob("[!.]*.exports")):
        found += _read(file)
    return found


def active() -> list[Export]:
    """Returns the exports that are in force now."""
    return _read(_etab())


def find(mountpoint: Path) -> list[Export]:
    """Every export of exactly *mountpoint*, in the files or now; one for each client, or two where
    it is exported ``sync`` in the one place and ``async`` in the other."""
    found: dict[tuple[str, bool], Export] = {}
    for export in configured() + active():
        if export.path == mountpoint:
            found.setdefault((export.client, export.sync), export)
    return list(found.values())


def _reaching(mountpoint: Path) -> list[Export]:
    return [one for one in configured() + active() if one.reaches(mountpoint)]


def is_exported(mountpoint: Path) -> bool:
    """Returns True if *mountpoint*, a part of it, or a directory above it by way of ``crossmnt``,
    is exported to any client, or will be when nfsd runs."""
    return bool(_reaching(mountpoint))


def lacking(mountpoint: Path) -> str | None:
    """Returns what is still to be done until clients reach *mountpoint*, which files export, in
    words; None where nothing is."""
    if nfsd.tool("exportfs") is None:
        return "no NFS server is installed: apt install nfs-kernel-server"
    if not nfsd.threads():
        return "nfsd does not run: systemctl start nfs-server"
    if not any(export.reaches(mountpoint) for export in active()):
        return "the NFS server has not read the file yet: exportfs -ra"
    return None


def waits(mountpoint: Path) -> bool:
    """Returns True if a client of *mountpoint* is promised that changes are durable when
    answered."""
    return any(export.sync for export in _reaching(mountpoint))


def stamp() -> tuple[int, ...]:
    """Something else whenever the exports may have changed."""
    etc = nfsd.root() / "etc"
    found = []
    for path in (etc / "exports", etc / "exports.d", _etab()):
        try:
            found.append(path.stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


def is_served(mountpoint: Path) -> bool:
    """Returns True if nfsd may hold the mount at *mountpoint*: it is exported now, or was."""
    return bool(_active_below(mountpoint)) or (
        nfsd.threads() > 0 and (nfsd.caches(mountpoint) or bool(nfsd.holders(mountpoint)))
    )


def _active_below(mountpoint: Path) -> list[Export]:
    return [export for export in active() if export.path.is_relative_to(mountpoint)]


# -- composing -------------------------------------------------------------------------------------


def check_client(text: str) -> str:
    """*text* if it can be a client in an exports file. Raises UsageError."""
    reason = ""
    if not text or not text.isprintable() or re.search(r"""[\s()"'#\\,=]""", text):
        reason = "no blanks, quotes, parentheses, commas, '=', '#' or '\\'"
    elif text.startswith("[") or (":" in text and not _is_network(text)):
        reason = "an IPv6 address goes without brackets and port, and no path belongs to it"
    elif "/" in text and not _is_network(text):
        reason = "no such network: as 192.168.1.0/24 or 2001:db8::/32"
    elif text == "@" or text.startswith("-"):
        reason = "a name is missing"
    if reason:
        raise UsageError(
            f"{text!r} cannot be a client ({reason}): give a host, an address, a network, "
            "a wildcard such as '*.example.org', or @netgroup"
        )
    return text


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def choose_options(
    uuid: UUID,
    *,
    read_only: bool,
    durable: bool,
    root_squash: bool,
    is_mirror: bool = False,
    further: Sequence[str] = (),
) -> list[tuple[str, str]]:
    """The options of a volume's export, each with why it is there.

    Args:
        uuid, is_mirror: the volume's id, and whether it may be the primary's later on.
        read_only, durable, root_squash: as in :func:`~fusejournal.admin.export.export_volume`.
        further: other options of exports(5).

    Raises UsageError for a *further* one that would undo what the others are for."""
    changes = "the layer of a mirror takes none" if is_mirror else "the journal has every change"
    chosen = [
        ("ro", "clients only read (--ro)")
        if read_only
        else ("rw", f"clients may change files; {changes}"),
        ("sync", "a change is answered when it is safe from a crash, as NFS promises")
        if durable
        else ("async", "faster: a crash of this machine may lose what clients believe is safe"),
        ("no_subtree_check", "an open file stays good when it is moved to another directory"),
        ("mountpoint", "the bare directory below is never exported while the layer is not there"),
        (f"fsid={uuid}", "the volume's UUID: file handles outlive restarts and moves to a mirror"),
        ("root_squash", "a client's root is nobody here (else: --no-root-squash)")
        if root_squash
        else ("no_root_squash", "a client's root is root here (--no-root-squash)"),
    ]
    for option in further:
        key = option.partition("=")[0]
        if not re.fullmatch(r"[!-~]+", option) or re.search(r"""[()"'#\\,]""", option):
            raise UsageError(f"{option!r} cannot be an export option: see exports(5)")
        if key in _CHOSEN:
            raise UsageError(f"--option {option} is not for this command: {_CHOSEN[key]}")
        chosen.append((option, "asked for with --option"))
    return chosen


def compose_line(
    mountpoint: Path, clients: Sequence[str], options: Sequence[tuple[str, str]]
) -> str:
    """The line itself."""
    path = "".join(
        chr(byte) if 32 < byte < 127 and chr(byte) not in "\"#\\'" else f"\\{byte:03o}"
        for byte in os.fsencode(mountpoint)
    )
    words = ",".join(option for option, _ in options)
    return " ".join((path, *(f"{client}({words})" for client in clients)))


def compose(
    name: str, mountpoint: Path, clients: Sequence[str], options: Sequence[tuple[str, str]]
) -> str:
    """The whole text of a volume's exports file: why each option is there, and the line."""
    width = max(len(option) for option, _ in options)
    return "\n".join(
        (
            f"{_MARK} {name} ... --write', which writes it anew; --remove takes it away.",
            "# Why each option is there:",
            *(f"#   {option:<{width}}  {why}" for option, why in options),
            compose_line(mountpoint, clients, options),
            "",
        )
    )


# -- changing --------------------------------------------------------------------------------------


def _check_installed() -> None:
    if nfsd.tool("exportfs") is None:
        raise NoNfsServerError(
            "no exportfs here: apt install nfs-kernel-server exports what the files say"
        )


def install(name: str, mountpoint: Path, text: str) -> list[str]:
    """Write the volume's file and export what it says; returns what exportfs printed. When it
    exports nothing, all is as before. Raises ExportError; NoNfsServerError, the file being
    written."""
    own = own_file(name)
    before = own.read_bytes() if own.exists() else None
    if before is not None and not before.startswith(_MARK.encode()):
        raise ExportError(f"{own} is not fusejournal's: move it away, or add the line to it")
    own.parent.mkdir(parents=True, exist_ok=True)
    _write(own, text.encode())
    _check_installed()
    words = _read_anew(dropping=mountpoint)
    if not any(export.path == mountpoint for export in active()):
        if before is None:
            _remove(own)
        else:
            _write(own, before)
        _read_anew(dropping=mountpoint)
        said = "; ".join(word for word in words if str(own) in word) or "; ".join(words)
        raise ExportError(f"nothing is exported: {said or 'exportfs gave no reason'}")
    nfsd.flush()
    return words


def _write(path: Path, content: bytes) -> None:
    write_atomically("exports", path, content, Outlives.MACHINE, mode=0o644)


def _remove(path: Path) -> None:
    # Else what is exported no more might be again when the system crashed.
    files.remove("exports.remove", path)


def remove(name: str, mountpoint: Path) -> bool:
    """Take the volume's file away, and every export of it that no other file has; returns whether
    there was any. Without an NFS server there is no more to it than the file. Raises OSError."""
    own = own_file(name)
    was = own.exists()
    _remove(own)
    if nfsd.tool("exportfs") is None:
        return was
    was = was or any(export.path == mountpoint for export in active())
    _read_anew(dropping=mountpoint)
    nfsd.flush()
    return was


def _read_anew(dropping: Path | None) -> list[str]:
    """exportfs -r, without what that does to exports that were made by hand: all but those of the
    path *dropping* stay. Returns what it printed."""
    before = active()
    _, words = nfsd.run("exportfs", "-r")
    there = {(export.path, export.client) for export in active()}
    gone = [export for export in before if (export.path, export.client) not in there]
    put_back([export for export in gone if export.path != dropping])
    return words


def read_anew() -> None:
    """Export what the files say, and what was exported by hand, and have nfsd forget how those
    were before. Raises ExportError."""
    _check_installed()
    _read_anew(dropping=None)
    if nfsd.threads():  # else it remembers nothing
        nfsd.flush()


def _argument(export: Export) -> str:
    # IPv6: [2001:db8::]/32:/path
    address, slash, prefix = export.client.partition("/")
    client = f"[{address}]{slash}{prefix}" if ":" in address else export.client
    return f"{client}:{export.path}"


def unexport(mountpoint: Path) -> list[Export]:
    """Unexport *mountpoint* and all inside it; returns what :func:`put_back` needs."""
    found = _active_below(mountpoint)
    if found:
        # In one call, because each flushes nfsd's caches: see nfsd.py.
        nfsd.run("exportfs", "-u", *map(_argument, found))
    return found


def put_back(found: Sequence[Export]) -> None:
    """Export again what was exported."""
    for export in found:
        nfsd.run("exportfs", "-o", ",".join(export.options), _argument(export))


def refresh_after_mount(mountpoint: Path) -> list[str]:
    """Let a running nfsd see the file system that is newly mounted at *mountpoint*, if that is
    exported; returns what a user may want to know, in lines. The layer must be serving."""
    if not is_exported(mountpoint) or nfsd.tool("exportfs") is None or not nfsd.threads():
        return []
    told = []
    try:
        _read_anew(dropping=None)
        if not any(export.reaches(mountpoint) for export in active()):
            told.append(f"{mountpoint} is not exported, though a file says so: see exportfs -r")
        nfsd.flush()
        if nfsd.has_lost_files():
            with nfsd.stopped():
                pass
            told.append(
                "NFSv4 clients had files open on the mount that is gone: restarted nfsd, "
                "and they open them anew"
            )
    except (FusejournalError, OSError) as error:
        told.append(f"NFS clients may not see {mountpoint} as it is now: {error}")
    return told
