"""ACLs through NFS clients: POSIX ones by the side protocol of NFSv3, and those of NFSv4, which
nfsd translates."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.guest.client import Person, entries, told
from tests.support.guest.server import drop_caches, sh
from tests.support.guest.sites import Site, Sites, check_replay
from tests.support.layer import Layer
from tests.support.trees import difference, image
from tests.support.users import ANOTHER, SOMEBODY

pytestmark = pytest.mark.guest

_POSIX = """
    touch file; mkdir dir; chmod 640 file
    setfacl -m u:1001:rw,g:2001:r file
    getfacl -cn file
    chmod 600 file
    getfacl -cn file
    setfacl -m m::rw file
    setfacl -x u:1001 file
    getfacl -cn file
    setfacl -n -m u:1001:rwx file
    getfacl -cn file
    setfacl -b file
    getfacl -cn file
    setfacl -m u:1001:rw file
    setfacl -m u:1000:rwx theirs
    setfacl -d -m u:1001:rwx,g::rwx,m::rwx dir
    getfacl -cn dir
    setfacl -m g:2001:x dir
    getfacl -cn dir
    umask 077; touch dir/new; mkdir dir/sub; mkfifo dir/fifo; ln -s new dir/soft; touch dir/sub/deep
    find dir ! -type l | sort | xargs getfacl -n
    setfacl -k dir/sub
    setfacl -R -m u:1002:rX dir
    setfacl -m u:1003:r dir/soft
    find dir ! -type l | sort | xargs getfacl -n
    cp -p dir/new copied; mv dir/new moved; ln moved linked; cp moved plain
    getfacl -n copied moved linked plain
    setfacl -m u:1001:rwx missing
    setfacl -k dir/sub; setfacl -b linked
    setfacl -b moved; setfacl -b dir
    find dir moved ! -type l | sort | xargs getfacl -n
"""
_VERSION_4 = """
    touch file; mkdir dir; chmod 640 file
    nfs4_getfacl file
    nfs4_setfacl -a A::1001:RW file
    nfs4_setfacl -a A:g:2001:R file
    nfs4_getfacl file
    chmod 600 file
    nfs4_getfacl file
    nfs4_setfacl -x A::1001:RW file
    nfs4_setfacl -s A::OWNER@:RW,A::1001:RW,A::GROUP@:R,A:g:2001:RX,A::EVERYONE@:X file
    nfs4_getfacl file
    nfs4_setfacl -a D::1002:R file
    nfs4_getfacl file
    nfs4_setfacl -a A::1000:RWX theirs
    nfs4_setfacl -a A:fd:1001:RWX dir
    nfs4_getfacl dir
    umask 077; touch dir/new; mkdir dir/sub; mkfifo dir/fifo; ln -s new dir/soft; touch dir/sub/deep
    nfs4_getfacl dir/new; nfs4_getfacl dir/sub; nfs4_getfacl dir/fifo; nfs4_getfacl dir/sub/deep
    cp dir/new copied; mv dir/new moved; ln moved linked
    nfs4_getfacl copied; nfs4_getfacl linked
    nfs4_setfacl -s A::OWNER@:RWX,A::GROUP@:RX,A::EVERYONE@:X dir
    nfs4_getfacl dir
    setfacl -m u:1001:rw file
    mkdir simple; nfs4_setfacl -a A::1001:RX simple; nfs4_getfacl simple
    nfs4_setfacl -s A::OWNER@:RWX,A::GROUP@:RX,A::EVERYONE@:RX simple; nfs4_getfacl simple
"""
_BY_ANOTHER = """
    cat file; echo more >>file
    cat dir/sub/deep; ls dir | sort; touch dir/by-another; ls dir/sub; cat moved; echo more >>moved
    rm -f dir/by-another
"""
COMMANDS = {"3": _POSIX, "4.2": _VERSION_4}


def shell(directory: Path, lines: str) -> list[tuple[str, int, str]]:
    """Run each line by itself; what each said."""
    found = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        done = subprocess.run(
            ["bash", "-c", line], cwd=directory, capture_output=True, text=True, check=False
        )
        told = (done.stdout + done.stderr).replace(str(directory), "")
        found.append((line, done.returncode, told))
    return found


def test_acls(sites: Sites, version: str) -> None:
    layer, volume, plain = sites
    after_seq = layer.head_seq()
    answers = []
    for site in (plain, volume):
        with Person(SOMEBODY, 2000, (2001,)) as somebody, Person(ANOTHER) as another:
            another.ask(shell, site.client, "touch theirs")
            answers.append(somebody.ask(shell, site.client, COMMANDS[version]))
            answers[-1] += another.ask(shell, site.other, _BY_ANOTHER)
    assert answers[1] == answers[0]
    found = entries(layer, after_seq)
    acls = [entry for entry in found if entry["op"] in ("setxattr", "removexattr")]
    assert {(entry["uid"], entry["gid"]) for entry in acls} == {(SOMEBODY, 2000)}
    drop_caches()
    assert not difference(image(volume.served, times=False), image(plain.served, times=False))
    assert not difference(image(layer.backing), image(volume.served))
    check_replay(layer, layer.base / "rebuilt")


def test_each_acl_is_in_the_journal_once(volume: Layer, site: Site, version: str) -> None:
    """A directory's access and default ACL are two attributes, also where one request sets both."""
    access, default = "system.posix_acl_access", "system.posix_acl_default"
    if version == "3":
        on_file, on_directory = "setfacl -m u:1001:rw file", "setfacl -dm u:1001:rwx dir"
    else:
        on_file, on_directory = "nfs4_setfacl -a A::1001:RW file", "nfs4_setfacl -a A:fd:1001:R dir"
    with Person(SOMEBODY, 2000) as somebody:
        somebody.ask(shell, site.client, "touch file; mkdir dir")
        after_seq = volume.head_seq()
        for line in (on_file, on_directory):
            assert somebody.ask(shell, site.client, line) == [(line, 0, "")]
    found = entries(volume, after_seq)
    assert [told(entry, 0) for entry in found] == [
        f"setxattr file {access}", f"setxattr dir {access}", f"setxattr dir {default}",
    ]  # fmt: skip
    assert {(entry["uid"], entry["gid"]) for entry in found} == {(SOMEBODY, 2000)}


def test_default_acls_made_on_the_server(sites: Sites) -> None:
    """They rule instead of a client's umask."""
    layer, volume, plain = sites
    answers = []
    for site in (plain, volume):
        (site.served / "dir").mkdir()
        (site.served / "dir").chmod(0o777)
        sh("setfacl", "-dm", "u:1001:rwx,g::rwx,m::rwx,o::-", site.served / "dir")
        with Person(SOMEBODY, 2000, umask=0o077) as somebody, Person(ANOTHER) as another:
            made = "touch dir/file; mkdir dir/sub; mkfifo dir/fifo; touch dir/sub/deep"
            made += "; umask 0; echo x >dir/open; install -m 640 /dev/null dir/sub/installed"
            answers.append(somebody.ask(shell, site.client, made))
            answers[-1] += another.ask(
                shell, site.client, "cat dir/open; echo y >>dir/file; ls dir"
            )
    assert answers[1] == answers[0]
    assert answers[0][0][1:] == (0, "")
    assert not difference(image(volume.served, times=False), image(plain.served, times=False))
    check_replay(layer, layer.base / "rebuilt")


@pytest.mark.parametrize("how", ["acl", "create"])
def test_setgid_is_kept_by_members_of_the_group(sites: Sites, version: str, how: str) -> None:
    """A user sets the ACL of a file, or makes one, of a group to which only the request's list of
    further groups says that the user belongs."""
    _, volume, plain = sites
    modes = []
    for site in (plain, volume):
        (site.served / "shared").mkdir()
        os.chown(site.served / "shared", 0, 2001)
        (site.served / "shared").chmod(0o2777)
        with Person(SOMEBODY, 2000, (2001,), umask=0) as somebody:
            somebody.ask(_make, site.client / "shared" / "file", 0o2775)
            if how == "acl":
                somebody.ask(os.chmod, site.client / "shared" / "file", 0o2775)
                words = "setfacl -m u:1001:rw" if version == "3" else "nfs4_setfacl -a A::1001:RW"
                line = f"{words} shared/file"
                assert somebody.ask(shell, site.client, line) == [(line, 0, "")]
        modes.append(oct((site.served / "shared" / "file").stat().st_mode))
    assert modes[1] == modes[0]


def _make(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))
