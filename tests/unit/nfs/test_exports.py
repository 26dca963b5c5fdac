"""Exports files: read as nfs-utils reads them, composed so that it reads them back, checked against
each other. No NFS server: exportfs is a script that does what it would to etab."""

import os
import sys
from pathlib import Path
from uuid import UUID

import pytest

from fusejournal.admin.export import export_volume, remove_export
from fusejournal.disk import failpoints
from fusejournal.errors import ExportConflictError, ExportError, NoNfsServerError, UsageError
from fusejournal.journal.handle_key import NO_HANDLE_KEY
from fusejournal.nfs import exports, nfsd
from fusejournal.nfs.export_conflicts import check_conflicts
from fusejournal.node.state_dir import VolumeState

UUID_1 = UUID("15e1aa09-516b-4cab-926f-e0e3020e2a5b")
UUID_2 = UUID("66e3a81b-8c4b-47bc-8b77-236d8e25e943")
HERE = Path("/nowhere/data")

EXPORTFS = f"""#!{sys.executable}
import sys
sys.path[:0] = {sys.path!r}
from fusejournal.nfs import exports
from fusejournal.nfs import nfsd
etab = nfsd.root() / "var/lib/nfs/etab"
with open(nfsd.root() / "calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
def line(e):
    return f"{{e.path}}\\t{{e.client}}({{','.join(e.options)}})"
now = exports.active()
if sys.argv[1] == "-r":
    now = exports.configured()
    for e in now:
        if e.client == "unknown":
            print("exportfs: Failed to resolve unknown", file=sys.stderr)
    now = [e for e in now if e.client != "unknown"]
elif sys.argv[1] == "-u":
    now = [e for e in now if f"{{e.client}}:{{e.path}}" not in sys.argv[2:]]
elif sys.argv[1] == "-o":
    client, _, path = sys.argv[3].partition(":")
    now += exports.parse(f"{{path}} {{client}}({{sys.argv[2]}})".encode(), etab)
etab.write_text("".join(line(e) + "\\n" for e in now))
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root directory with an exportfs; nothing exported."""
    for name in ("etc/exports.d", "var/lib/nfs", "usr/sbin", "proc/fs/nfsd"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "usr/sbin/exportfs").write_text(EXPORTFS)
    (tmp_path / "usr/sbin/exportfs").chmod(0o755)
    monkeypatch.setenv("FUSEJOURNAL_NFS_ROOT", str(tmp_path))
    return tmp_path


def parse(text: str) -> list[tuple[str, str, tuple[str, ...], int]]:
    found = exports.parse(os.fsencode(text), Path("/etc/exports"))
    return [(str(one.path), one.client, one.options, one.line) for one in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a h(rw,sync)\n", [("/a", "h", ("rw", "sync"), 1)]),
        ("/a h(rw) k(ro)", [("/a", "h", ("rw",), 1), ("/a", "k", ("ro",), 1)]),
        ("# no\n\n  /a\th(rw) # why\n", [("/a", "h", ("rw",), 3)]),
        ("/a h(rw) \\\n  k(ro)\n/b l\n", [
            ("/a", "h", ("rw",), 1), ("/a", "k", ("ro",), 1), ("/b", "l", (), 3),
        ]),
        ("# a comment \\\n/a h()\n", [("/a", "h", (), 2)]),
        ('"/a b" h(rw)', [("/a b", "h", ("rw",), 1)]),
        ("/a\\040b\\134\\043c h(rw)", [("/a b\\#c", "h", ("rw",), 1)]),
        ('"/a\\040#b"c h(rw)', [("/a #bc", "h", ("rw",), 1)]),
        ("/a#b h(rw)", [("/a#b", "h", ("rw",), 1)]),
        ("/a\\377 h", [("/a\udcff", "h", (), 1)]),
        ("/a -ro,async h k(rw) -sync l", [
            ("/a", "h", ("ro", "async"), 1),
            ("/a", "k", ("ro", "async", "rw"), 1),
            ("/a", "l", ("sync",), 1),
        ]),
        ("/a (ro)", [("/a", "*", ("ro",), 1)]),
        ("/a -ro", [("/a", "*", ("ro",), 1)]),
        ("/a/ @g(rw) 10.0.0.0/8() 2001:db8::/32(ro)", [
            ("/a", "@g", ("rw",), 1),
            ("/a", "10.0.0.0/8", (), 1),
            ("/a", "2001:db8::/32", ("ro",), 1),
        ]),
        ("", []),
        ("\\\n\n#\n", []),
    ],
)  # fmt: skip
def test_parse(text: str, expected: list[tuple[str, str, tuple[str, ...], int]]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("options", "sync", "fsid"),
    [
        ("rw", True, None),
        ("async", False, None),
        ("async,rw,sync", True, None),
        ("fsid=0", True, "0"),
        ("fsid=root", True, "0"),
        ("fsid=12,async", False, "12"),
        (f"fsid={UUID_1}", True, UUID_1.hex),
        (f"fsid={UUID_2},fsid={str(UUID_1).upper().replace('-', ':')}", True, UUID_1.hex),
    ],
)
def test_what_options_mean(options: str, sync: bool, fsid: str | None) -> None:
    (export,) = exports.parse(f"/a h({options})".encode(), Path("x"))
    assert (export.sync, export.fsid) == (sync, fsid)


@pytest.mark.parametrize("path", ["/srv/data", "/a b/c\\d", "/a'b\"#c", "/a\tb\nc", "/\udcff(é)"])
def test_what_is_composed_is_read_back(path: str) -> None:
    options = exports.choose_options(UUID_1, read_only=False, durable=True, root_squash=True)
    text = exports.compose("data", Path(path), ["h", "10.0.0.0/8"], options)
    words = ("rw", "sync", "no_subtree_check", "mountpoint", f"fsid={UUID_1}", "root_squash")
    assert parse(text) == [(path, client, words, 9) for client in ("h", "10.0.0.0/8")]
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert "fusejournal export data" in comments[0]
    for word in words:
        assert any(line.startswith(f"#   {word} ") for line in comments)


def test_options() -> None:
    of_mirror = exports.choose_options(
        UUID_1, read_only=False, durable=True, root_squash=True, is_mirror=True
    )
    # It may be the primary's later on, with the same exports.
    assert of_mirror[0] == ("rw", "clients may change files; the layer of a mirror takes none")
    chosen = exports.choose_options(
        UUID_1, read_only=True, durable=False, root_squash=False, further=["sec=krb5:sys"]
    )
    assert [option for option, _ in chosen] == [
        "ro", "async", "no_subtree_check", "mountpoint", f"fsid={UUID_1}", "no_root_squash",
        "sec=krb5:sys",
    ]  # fmt: skip
    for wrong in ("fsid=1", "async", "subtree_check", "mp=/x", "a b", "a)", "", "a,b"):
        with pytest.raises(UsageError):
            exports.choose_options(
                UUID_1, read_only=True, durable=True, root_squash=True, further=[wrong]
            )


@pytest.mark.parametrize(
    "client",
    ["h", "h.example.org", "*", "*.example.org", "h?", "@group", "10.0.0.1", "10.0.0.0/8",
     "10.0.0.0/255.0.0.0", "10.0.*", "2001:db8::1", "2001:db8::/32", "fe80::1"],
)  # fmt: skip
def test_clients(client: str) -> None:
    assert exports.check_client(client) == client


@pytest.mark.parametrize(
    "client",
    ["", " ", "a b", "h(rw)", '"h"', "'h'", "h,k", "h\\", "h#", "/srv/data", "h/24", "10.0.0.0/99",
     "h:/srv", "[2001:db8::1]", "-ro", "@", "rw=1", "h\n"],
)  # fmt: skip
def test_no_clients(client: str) -> None:
    with pytest.raises(UsageError, match="cannot be a client"):
        exports.check_client(client)


def test_find(server: Path) -> None:
    assert exports.find(HERE) == []
    assert not exports.is_exported(HERE)
    assert not exports.waits(HERE)
    (server / "etc/exports").write_text(f"{HERE} h(async)\n/other h(rw)\n{HERE}/sub h(async)\n")
    (server / "etc/exports.d/b.exports").write_text(f"\n{HERE}/ k(rw,async)\n")
    for ignored in ("etc/exports.d/.c.exports", "etc/exports.d/d.txt"):
        (server / ignored).write_text(f"{HERE} ignored()\n")
    assert [(one.client, one.line) for one in exports.find(HERE)] == [("h", 1), ("k", 2)]
    assert exports.is_exported(HERE)
    assert not exports.waits(HERE)
    (server / "var/lib/nfs/etab").write_text(
        f"{HERE}\tk(rw,sync,wdelay)\n{HERE}\th(rw,async)\n/o\tx(rw,sync)\n"
    )
    assert [(one.client, one.sync) for one in exports.find(HERE)] == [
        ("h", False), ("k", False), ("k", True),
    ]  # fmt: skip
    assert exports.waits(HERE)


def test_what_is_still_to_be_done(server: Path) -> None:
    """A file alone exports nothing: an NFS server has to be there, run, and have read it."""
    (server / "etc/exports").write_text(f"{HERE} h(rw)\n")
    (server / "usr/sbin/exportfs").rename(server / "exportfs")
    assert "apt install nfs-kernel-server" in (exports.lacking(HERE) or "")
    (server / "exportfs").rename(server / "usr/sbin/exportfs")
    assert "systemctl start nfs-server" in (exports.lacking(HERE) or "")
    (server / "proc/fs/nfsd/threads").write_text("8\n")
    assert "exportfs -ra" in (exports.lacking(HERE) or "")
    (server / "var/lib/nfs/etab").write_text(f"{HERE}\th(rw,sync)\n")
    assert exports.lacking(HERE) is None


def test_a_parent_that_crosses_mounts(server: Path) -> None:
    def say(options: str) -> None:
        (server / "etc/exports").write_text(f"{HERE.parent} h({options})\n{HERE}x h(crossmnt)\n")

    for options in ("sync", "sync,crossmnt,nocrossmnt"):
        say(options)
        assert not exports.is_exported(HERE)
    say("async,crossmnt")
    assert exports.is_exported(HERE)
    assert not exports.waits(HERE)
    say("crossmnt")
    assert exports.waits(HERE)
    assert exports.find(HERE) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"/other h(fsid={UUID_1})", "with the fsid of volume data"),
        (f"/other h(fsid={UUID_1.hex.upper()})", "with the fsid of volume data"),
        (f"{HERE} h(rw,fsid={UUID_2})", "otherwise"),
        (f"{HERE} h(rw)", "without an fsid"),
        (f"{HERE}/sub/dir h(rw,fsid=7)", "inside volume data"),
    ],
)
def test_conflicts(server: Path, line: str, words: str) -> None:
    (server / "etc/exports").write_text(f"# a line\n{line}\n")
    with pytest.raises(ExportConflictError, match=words) as caught:
        check_conflicts("data", HERE, UUID_1)
    assert caught.value.where == f"{server}/etc/exports line 2"
    (server / "etc/exports").rename(exports.own_file("data"))
    check_conflicts("data", HERE, UUID_1)
    exports.own_file("data").unlink()
    (server / "var/lib/nfs/etab").write_text(line.replace(" ", "\t"))
    with pytest.raises(ExportConflictError, match=words) as caught:
        check_conflicts("data", HERE, UUID_1)
    assert "by hand" in caught.value.where


def test_a_primary_and_its_mirror_are_not_exported_by_one_server(server: Path) -> None:
    exports.own_file("data").write_text(f"{HERE} h(fsid={UUID_1})\n")
    with pytest.raises(ExportConflictError, match=r"the other.s mirror") as caught:
        check_conflicts("copy", Path("/elsewhere"), UUID_1)
    assert caught.value.where == "volume data"
    assert "'fusejournal export data --remove'" in str(caught.value)


def test_no_conflicts(server: Path) -> None:
    (server / "etc/exports").write_text(
        f"{HERE} admin(rw,no_root_squash,fsid={UUID_1})\n/other h(fsid={UUID_2})\n{HERE}x h()\n"
    )
    check_conflicts("data", HERE, UUID_1)


def compose(*clients: str) -> str:
    options = exports.choose_options(UUID_1, read_only=False, durable=True, root_squash=True)
    return exports.compose("data", HERE, clients, options)


def test_install_and_remove(server: Path) -> None:
    by_hand = "/other\tk(rw,sync)\n"
    (server / "var/lib/nfs/etab").write_text(by_hand)
    assert exports.install("data", HERE, compose("h", "10.0.0.0/8")) == []
    assert exports.own_file("data").stat().st_mode & 0o777 == 0o644
    assert os.listdir(server / "etc/exports.d") == ["fusejournal-data.exports"]
    assert [one.client for one in exports.find(HERE)] == ["h", "10.0.0.0/8"]
    assert ("k", Path("/other")) in [(one.client, one.path) for one in exports.active()]
    exports.install("data", HERE, compose("l"))
    assert [one.client for one in exports.active() if one.path == HERE] == ["l"]
    calls = (server / "calls").read_text().splitlines()
    assert (calls[0], calls[-1]) == ("-r", "-f")
    assert exports.remove("data", HERE)
    assert not exports.find(HERE)
    assert not os.listdir(server / "etc/exports.d")
    assert [one.client for one in exports.active()] == ["k"]
    assert not exports.remove("data", HERE)


def test_install_that_exports_nothing_changes_nothing(server: Path) -> None:
    with pytest.raises(ExportError, match="Failed to resolve unknown"):
        exports.install("data", HERE, compose("unknown"))
    assert not exports.own_file("data").exists()
    exports.install("data", HERE, compose("h"))
    before = exports.own_file("data").read_bytes()
    with pytest.raises(ExportError, match="Failed to resolve unknown"):
        exports.install("data", HERE, compose("unknown"))
    assert exports.own_file("data").read_bytes() == before
    assert [one.client for one in exports.active()] == ["h"]
    assert exports.install("data", HERE, compose("h", "unknown")) == ["Failed to resolve unknown"]


def test_what_is_exported_and_what_not_is_on_the_disk(server: Path) -> None:
    labels: list[str] = []
    failpoints.listen(labels.append)
    try:
        exports.install("data", HERE, compose("h"))
        steps = ["exports.write", "exports.sync", "exports.rename", "exports.directory"]
        assert labels == steps
        exports.remove("data", HERE)
        assert labels[len(steps) :] == ["exports.remove.unlink", "exports.remove.directory"]
        with pytest.raises(ExportError):
            exports.install("data", HERE, compose("unknown"))
        assert labels[-1] == "exports.remove.directory"
    finally:
        failpoints.listen(None)
    assert list(exports.own_file("data").parent.iterdir()) == []


def test_install_leaves_a_file_of_somebody_else(server: Path) -> None:
    exports.own_file("data").write_text(f"{HERE} h()\n")
    with pytest.raises(ExportError, match="is not fusejournal's"):
        exports.install("data", HERE, compose("h"))


def test_without_a_server(server: Path) -> None:
    (server / "usr/sbin/exportfs").unlink()
    with pytest.raises(NoNfsServerError, match="apt install"):
        exports.install("data", HERE, compose("h"))
    assert exports.own_file("data").read_text() == compose("h")
    assert exports.refresh_after_mount(HERE) == []
    assert exports.remove("data", HERE)
    assert not exports.own_file("data").exists()
    assert not exports.remove("data", HERE)
    assert not exports.is_served(HERE)
    assert nfsd.threads() == 0


def test_unexport_and_put_back(server: Path) -> None:
    (server / "var/lib/nfs/etab").write_text(
        f"{HERE}\th(rw,sync)\n{HERE}/sub\tk(ro)\n{HERE}x\tl()\n"
    )
    taken = exports.unexport(HERE)
    assert [one.client for one in exports.active()] == ["l"]
    exports.put_back(taken)
    assert sorted(one.client for one in exports.active()) == ["h", "k", "l"]
    assert (server / "calls").read_text().splitlines()[0] == f"-u h:{HERE} k:{HERE}/sub"


def test_refresh_after_mount(server: Path) -> None:
    exports.own_file("data").write_text(compose("h"))
    assert exports.refresh_after_mount(HERE) == []
    assert not (server / "calls").exists()  # nfsd does not run
    (server / "proc/fs/nfsd/threads").write_text("8\n")
    assert exports.refresh_after_mount(Path("/not/exported")) == []
    assert not (server / "calls").exists()
    assert exports.refresh_after_mount(HERE) == []
    assert (server / "calls").read_text().split() == ["-r", "-f"]
    assert [one.client for one in exports.active()] == ["h"]
    (server / "usr/sbin/exportfs").write_text("#!/bin/sh\nexit 1\n")
    (server / "var/lib/nfs/etab").write_text("")
    assert "is not exported" in exports.refresh_after_mount(HERE)[0]


STATES = """\
- 0x0000000151f6046babd73de002000000: { type: open, access: rw, deny: --, superblock: "%s:4", \
filename: "/fi"le", owner: "open id:\\x00\\x00" }
- 0x0000000151f6046babd73de003000000: { type: deleg, access: r, superblock: "00:ff:5", \
filename: "d/e" }
- 0x0000000151f6046babd73de004000000: { type: lock, superblock: "%s:4", filename: "/fi"le", \
owner: "lock id:" }
"""


def test_holders(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = server / "proc/fs/nfsd/clients/3"
    client.mkdir(parents=True)
    (client / "states").write_text(STATES % ("00:fe", "00:fe"))
    (client / "info").write_text(
        'clientid: 0xe0\naddress: "[2001:db8::1]:759"\nstatus: courtesy\n'
        'seconds from last renew: 312\nname: "Linux NFSv4.2 c"\n'
    )
    (server / "proc/locks").write_text(
        "1: POSIX  ADVISORY  WRITE 801 00:fe:4 0 EOF\n2: POSIX  ADVISORY  WRITE 795 00:fe:9 0 9\n"
        "2: -> POSIX  ADVISORY  WRITE 795 00:fe:9 0 EOF\n"
        "3: POSIX  ADVISORY  WRITE 795 00:fd:9 0 EOF\n"
        "4: FLOCK  ADVISORY  WRITE 802 62:00:131079 0 EOF\n"
    )
    for pid, name in ((801, "nfsd"), (795, "lockd"), (802, "python")):
        (server / f"proc/{pid}").mkdir()
        (server / f"proc/{pid}/comm").write_text(f"{name}\n")
    monkeypatch.setattr(nfsd, "device_of", lambda _: "0:254")
    found = nfsd.holders(HERE)
    assert [(one.kind, one.inode, one.client) for one in found] == [
        ("open", 4, client), ("lock", 4, client), ("lock", 9, None),
    ]  # fmt: skip
    (server / "var/lib/nfs/sm").mkdir()
    (server / "var/lib/nfs/sm/c1").touch()
    assert nfsd.describe(found, HERE, NO_HANDLE_KEY) == (
        "NFSv4 client [2001:db8::1] (Linux NFSv4.2 c), silent for 312 s, "
        "has inode 4 (open, locked); an NFSv3 client (out of c1) has inode 9 (locked)"
    )
    assert not nfsd.has_lost_files()  # who is silent is not worth a restart
    (client / "info").write_text("status: confirmed\n")
    assert nfsd.has_lost_files()
    (server / "proc/1").mkdir()
    (server / "proc/1/mountinfo").write_text(
        "25 19 0:254 / /a rw - fuse a rw\n26 19 0:255 / /b rw - fuse b rw\n"
    )
    assert not nfsd.has_lost_files()


def test_of_many_holders_the_first_are_named(server: Path) -> None:
    found = []
    for number in range(16):
        client = server / f"proc/fs/nfsd/clients/{number + 10}"
        client.mkdir(parents=True)
        (client / "info").write_text(f'address: "10.0.0.{number}:759"\nname: "c{number}"\n')
        found += [nfsd.Holder("open", inode, client) for inode in range(100, 107)]
    words = nfsd.describe(found, HERE, NO_HANDLE_KEY)
    assert words.count("NFSv4 client") == 5
    assert "10.0.0.0 (c0) has inode 100 (open), " in words
    assert "inode 104 (open), 2 more; " in words
    assert words.endswith("; 11 more clients have files, too")


def test_caches(server: Path) -> None:
    directory = server / "proc/net/rpc/nfsd.export"
    directory.mkdir(parents=True)
    (directory / "content").write_text(
        "#path domain(flags)\n/srv/a\\040b\tx(rw)\n# /srv/c\tx()\n/srv/dd\tx(rw)\n"
    )
    assert nfsd.caches(Path("/srv/a b"))
    assert nfsd.caches(Path("/srv/c"))
    assert not nfsd.caches(Path("/srv/d"))
    assert nfsd.flushes_in() == 0


def test_the_export_of_a_volume_without_a_server(server: Path, tmp_path: Path) -> None:
    """All that is asked is done; that nothing is exported is an error only where that was asked."""
    (server / "usr/sbin/exportfs").unlink()
    state = VolumeState(tmp_path / "state", UUID_1, "data", HERE, HERE, 1)
    (tmp_path / "state").mkdir()
    printed = export_volume(state, ("h",))
    assert printed.missing is None
    assert printed.report.warnings == (
        "no NFS server here: apt install nfs-kernel-server before --write",
    )
    written = export_volume(state, ("h",), write=True)
    assert written.report.written
    own = exports.own_file("data")
    assert own.read_text() == written.content
    assert str(written.missing) == (
        f"wrote {own}; not exported: no exportfs here: apt install nfs-kernel-server exports what "
        "the files say"
    )
    assert remove_export(state).report.removed
    assert not own.exists()
