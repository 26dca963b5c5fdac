"""The wheel and the Debian package are built, installed where nothing else is, and put to work."""

import hashlib
import os
import platform
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

_TOP = Path(__file__).parent.parent.parent

_WORK = r"""
set -eu
mkdir -p "$1/data"
echo precious >"$1/data/file"
fusejournal mount "$1/data" "$1/data" --name packaged
echo draft >"$1/data/report"
rm "$1/data/file"
fusejournal log packaged -n 20 | grep unlink
fusejournal undo packaged --op unlink --since "10 minutes ago" --apply
grep precious "$1/data/file"
fusejournal restart packaged
grep draft "$1/data/report"
fusejournal status packaged
fusejournal journal verify packaged
fusejournal umount packaged
test ! -e "$1/data/.fusejournal"
"""
"""The work of the quickstart: a tree is there first, a change is logged and taken back."""

_COMPLETION = r"""
cd /usr/share
bash -c '. bash-completion/completions/fusejournal; complete -p fusejournal'
zsh -f -c 'autoload -U compinit; compinit -D
    . zsh/vendor-completions/_fusejournal; test "$_comps[fusejournal]" = _fusejournal_completion'
LD_LIBRARY_PATH=$(echo /fish/usr/lib/*-linux-gnu) /fish/usr/bin/fish -N -c \
    '. fish/vendor_completions.d/fusejournal.fish; complete -c fusejournal' | grep fusejournal
cd /
"""
"""Each shell reads its script and knows the command from then on."""

_FISH = """
mkdir /fish
cd /fish
apt-get download -qq fish fish-common libpcre2-32-0
for package in *.deb; do dpkg -x "$package" .; done
"""
"""The shell comes beside the system, where the packages that it depends on would hide what is
missing of fusejournal's. (Those of zsh are none of them.)"""

_IN_CHROOT = rf"""
set -eu
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
[ -e /dev/fuse ] || mknod /dev/fuse c 10 229
cat >/work <<'END'
{_WORK}
END
sh /work /srv
mount -t fusejournal /srv/data /srv/data -o name=packaged
grep precious /srv/data/file
fusejournal umount packaged
fusejournal console --listen 0.0.0.0:7780 2>&1 | grep 'give --tls'
dpkg --verify fusejournal
/usr/lib/fusejournal/bin/python3 -P -c 'import fusejournal.objects.remote'
{_COMPLETION}
dpkg -r fusejournal
test ! -e /usr/lib/fusejournal
"""


def _run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paths of both. Only the C compiler's optimization is not that of what is given away: it
    takes most of the time, and the tests run what was optimized elsewhere."""
    directory = tmp_path_factory.mktemp("package")
    _run(_TOP / "scripts" / "package", directory, FUSEJOURNAL_OPTIMIZE="0")
    return directory


@pytest.fixture
def version() -> str:
    project = tomllib.loads((_TOP / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def test_the_wheel(built: Path, tmp_path: Path, version: str) -> None:
    (wheel,) = built.glob("*.whl")
    _run("/usr/bin/python3", "-m", "venv", tmp_path / "clean")
    bin_directory = tmp_path / "clean" / "bin"
    _run(bin_directory / "pip", "install", "-q", "--disable-pip-version-check", wheel)
    environment = {
        "PATH": f"{bin_directory}:{os.environ['PATH']}",
        "FUSEJOURNAL_STATE_ROOT": str(tmp_path / "states"),
    }
    assert _run("fusejournal", "--version", **environment) == f"fusejournal {version}\n"
    _run("sh", "-c", _WORK, "sh", tmp_path, **environment)


def test_the_debian_package(built: Path, tmp_path: Path, version: str) -> None:
    """Installs it as apt does, with what it depends on, into a system that has nothing else."""
    (package,) = built.glob("*.deb")
    root = tmp_path / "root"
    _run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--include=zsh"),
        "--aptopt=Acquire::Languages none",
        f"--customize-hook=chroot $1 sh -euc '{_FISH}'",
        f"--customize-hook=copy-in {package} /",
        "--customize-hook=chroot $1 apt-get install -y -qq --no-install-recommends "
        f"/{package.name}",
        *(platform.freedesktop_os_release()["VERSION_CODENAME"], root),
    )
    assert _run("chroot", root, "fusejournal", "--version") == f"fusejournal {version}\n"
    isolated = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "chroot", root)
    _run(*isolated, "sh", "-c", _IN_CHROOT, PATH="/usr/sbin:/usr/bin:/sbin:/bin")


def test_the_man_pages(built: Path, tmp_path: Path, version: str) -> None:
    (package,) = built.glob("*.deb")
    _run("dpkg-deb", "-x", package, tmp_path)
    directory = tmp_path / "usr/share/man/man1"
    _run("gzip", "-d", *directory.iterdir())
    pages = sorted(directory.iterdir())
    assert len(pages) > 20
    assert _run("mandoc", "-T", "lint", "-W", "warning", *pages) == ""
    shown = {page.name: _run("mandoc", "-T", "ascii", "-O", "width=100", page) for page in pages}
    assert f"fusejournal {version}" in shown["fusejournal.1"]
    assert "EXIT STATUS" in re.sub(r".\x08", "", shown["fusejournal.1"])
    assert "undo srv-data 4711-5022 --apply" in shown["fusejournal-undo.1"]


def test_what_an_older_build_left_is_not_taken(tmp_path: Path) -> None:
    """A source may be the newer one and have the older time, as rsync -t and tar bring it."""
    tree, wheels = tmp_path / "tree", tmp_path / "wheels"
    _run("git", "clone", "-q", _TOP, tree)
    source = tree / "fusejournal/native/kernel.c"
    for _ in range(2):
        build = (_TOP / ".venv/bin/pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps")
        _run(*build, "-w", wheels, tree, FUSEJOURNAL_PURE="1")
        source.write_text(source.read_text() + "/* newer */\n")
        os.utime(source, (0, 0))
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = archive.read("fusejournal/native/kernel.c")
        manifest = archive.read("fusejournal/compiled.sha256").decode()
    assert held.endswith(b"/* newer */\n")
    assert hashlib.sha256(held).hexdigest() in manifest
