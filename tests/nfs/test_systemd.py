"""The unit and the mount helper that ``fusejournal install`` writes, under a real systemd, with
Debian's own nfs-server.service and mount(8)."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.guest.server import make_disk, prepare_services, wait_until
from tests.support.guest.systemd import Systemd

pytestmark = pytest.mark.guest(early=True)

UNIT = Path("/etc/systemd/system/fusejournal@.service")
PROGRAM = Path(sys.executable).with_name("fusejournal")
FSTAB = Path("/etc/fstab")
CONFIGURATIONS = Path("/etc/fusejournal")
STATES = Path("/var/lib/fusejournal")
DISK = Path("/srv/disk")


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    # First: what is mounted later, its processes do not see.
    make_disk("ext4", Path("/dev/ubda"), DISK)
    with Systemd(tmp_path_factory.mktemp("systemd") / "etc") as one:
        one.run(PROGRAM, "install", "--write")
        yield one


class Volume:
    """A volume that was mounted once: made by hand, as an admin does before there is a unit."""

    def __init__(self, systemd: Systemd, base: Path, name: str = "data") -> None:
        self.systemd = systemd
        self.name = name
        self.backing = base / "backing"
        self.mountpoint = base / "data"
        for directory in (self.backing, self.mountpoint):
            directory.mkdir(parents=True)
        (self.backing / "file").write_text("content")
        self.unit = f"fusejournal@{name}"
        places = (self.backing, self.mountpoint)
        self.fusejournal("mount", *places, "--name", name, "--open-backing")
        self.unmount()

    def fusejournal(self, *command: str | Path) -> str:
        return self.systemd.run(PROGRAM, *command)

    def mounts(self) -> list[list[str]]:
        """The lines of /proc/mounts that are this volume's, as words."""
        lines = self.systemd.run("cat", "/proc/mounts").splitlines()
        return [line.split() for line in lines if line.startswith(f"fusejournal:{self.name} ")]

    def unmount(self) -> None:
        self.systemd.run("umount", self.mountpoint)
        wait_until("its layer's end", lambda: self.status()["pid"] is None)

    def is_live(self) -> bool:
        return self.systemd.result("cat", self.mountpoint / "file").stdout == "content"

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.fusejournal("status", self.name, "--json"))
        return told

    def ends_clean(self) -> bool:
        last = self.fusejournal("log", self.name, "-n", "1", "--json")
        return bool(json.loads(last)["op"] == "clean")


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    directory = DISK / tmp_path.name
    directory.mkdir()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
    for directory in (STATES, CONFIGURATIONS):
        shutil.rmtree(directory, ignore_errors=True)
    FSTAB.write_text("")


@pytest.fixture
def data(systemd: Systemd, base: Path) -> Iterator[Volume]:
    volume = Volume(systemd, base)
    yield volume
    systemd.run("systemctl", "stop", volume.unit, check=False)
    systemd.run("systemctl", "reset-failed", check=False)
    systemd.run("umount", "-l", volume.mountpoint, check=False)


def pid(systemd: Systemd, unit: str) -> int:
    return int(systemd.show(unit, "MainPID"))


def test_start_returns_when_the_mount_is_live_and_stop_when_it_is_over(
    systemd: Systemd, data: Volume
) -> None:
    CONFIGURATIONS.mkdir()
    (CONFIGURATIONS / "data.toml").write_text('[volume]\noptions = ["nosuid", "nodev"]\n')
    systemd.run("systemctl", "start", data.unit)
    assert data.is_live()
    (options,) = (words[3].split(",") for words in data.mounts())
    assert {"nosuid", "nodev"} <= set(options)
    process = f"/proc/{pid(systemd, data.unit)}"
    assert systemd.run("cat", f"{process}/oom_score_adj").strip() == "-900"
    assert "524288" in systemd.run("grep", "open files", f"{process}/limits")
    systemd.run("touch", data.mountpoint / "more")
    systemd.run("systemctl", "stop", data.unit)
    assert data.mounts() == []
    assert systemd.show(data.unit, "Result") == "success"
    assert data.status()["state"] == "stopped"
    assert data.ends_clean()
    assert (data.backing / "more").exists()


def test_a_killed_layer_is_started_again(systemd: Systemd, data: Volume) -> None:
    systemd.run("systemctl", "start", data.unit)
    systemd.run("touch", data.mountpoint / "more")
    killed = pid(systemd, data.unit)
    systemd.run("kill", "-9", str(killed))
    wait_until("another process", lambda: pid(systemd, data.unit) not in (0, killed))
    wait_until("its readiness", lambda: systemd.show(data.unit, "ActiveState") == "active")
    assert data.is_live()
    assert len(data.mounts()) == 1
    systemd.run("ls", data.mountpoint / "more")
    assert systemd.show(data.unit, "NRestarts") == "1"
    systemd.run("systemctl", "stop", data.unit)
    assert data.ends_clean()


def test_a_disk_that_is_not_there_is_waited_for(systemd: Systemd, data: Volume) -> None:
    away = data.backing.with_name("away")
    data.backing.rename(away)
    assert systemd.result("systemctl", "start", data.unit).returncode != 0
    wait_until("attempts", lambda: int(systemd.show(data.unit, "NRestarts")) >= 3, 60)
    assert f"{data.backing}: No such file or directory" in systemd.said(data.unit)
    # However often: the default would be five times in ten seconds.
    assert systemd.show(data.unit, "StartLimitIntervalUSec") == "0"
    away.rename(data.backing)
    wait_until("the mount", lambda: systemd.show(data.unit, "ActiveState") == "active", 60)
    assert data.is_live()


def test_a_bad_configuration_fails_once_and_says_why(systemd: Systemd, data: Volume) -> None:
    CONFIGURATIONS.mkdir()
    wrong = CONFIGURATIONS / "data.toml"
    wrong.write_text("[journal]\nsegment_byte = 5\n")
    assert systemd.result("systemctl", "start", data.unit).returncode != 0
    wait_until("its end", lambda: systemd.show(data.unit, "ActiveState") == "failed")
    reason = f"{wrong}: unknown key 'journal.segment_byte'; did you mean 'journal.segment_bytes'?"
    assert f"fusejournal: {reason}" in systemd.said(data.unit).splitlines()
    assert systemd.show(data.unit, "StatusText") == reason
    assert systemd.show(data.unit, "ExecMainStatus") == "2"
    assert systemd.show(data.unit, "NRestarts") == "0"
    wrong.unlink()
    systemd.run("systemctl", "start", data.unit)
    assert data.is_live()


@pytest.mark.parametrize(
    ("name", "instance"),
    [
        ("srv-my\\x2ddata", "srv-my\\x2ddata"),  # the name that /srv/my-data gives a volume
        ("my $HOME %n", "my\\x20\\x24HOME\\x20\\x25n"),
        ("data", ""),  # by its mountpoint
    ],
    ids=["escaped", "unescaped", "path"],
)
def test_names_of_units(systemd: Systemd, base: Path, name: str, instance: str) -> None:
    volume = Volume(systemd, base, name)
    path = systemd.run("systemd-escape", "--path", volume.mountpoint).strip()
    unit = f"fusejournal@{instance or path}.service"
    systemd.run("systemctl", "start", unit)
    try:
        assert volume.is_live()
        assert volume.status()["pid"] is not None
        assert systemd.show(unit, "ActiveState") == "active"
    finally:
        systemd.run("systemctl", "stop", unit)
        assert volume.ends_clean()


def test_systemd_has_nothing_to_say_against_the_unit(systemd: Systemd, base: Path) -> None:
    instance = base / "fusejournal@srv-my\\x2ddata.service"
    instance.write_text(systemd.run("cat", UNIT))
    for unit in (UNIT, instance):
        checked = systemd.result("systemd-analyze", "verify", unit)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_nfsd_starts_after_it_and_stops_before_it(systemd: Systemd, data: Volume) -> None:
    prepare_services()
    Path("/etc/exports").write_text(f"{data.mountpoint} 127.0.0.1(rw,fsid=77,no_subtree_check)\n")
    both = ("nfs-server.service", data.unit)
    assert "nfs-server.service" in systemd.show(data.unit, "Before").split()
    systemd.run("systemctl", "daemon-reload")
    try:
        systemd.run("systemctl", "start", *both)
        assert systemd.show(both[0], "ActiveState") == "active"
        assert str(data.mountpoint) in systemd.run("exportfs", "-s")
        systemd.run("systemctl", "stop", *both)
        nfsd, layer = "nfs-server.service - ", f"{data.unit}.service - "
        told = systemd.said(*both)
        places = [
            told.rindex(words)
            for words in (f"Started {layer}", f"Starting {nfsd}", f"Finished {nfsd}",
                          f"Stopping {nfsd}", f"Stopped {nfsd}", f"Stopping {layer}")
        ]  # fmt: skip
        assert places == sorted(places), told
        assert data.ends_clean()
    finally:
        Path("/etc/exports").write_text("")


def test_callers_of_an_exported_volume_wait_for_its_next_layer(
    systemd: Systemd, data: Volume
) -> None:
    prepare_services()
    Path("/etc/exports").write_text(f"{data.mountpoint} 127.0.0.1(rw,fsid=77,no_subtree_check)\n")
    try:
        systemd.run("systemctl", "start", "nfs-server.service", data.unit)
        killed = pid(systemd, data.unit)
        read = f"exec 3<'{data.mountpoint}/file' && kill -9 {killed} && cat <&3"
        assert systemd.run("sh", "-c", read) == "content"
        assert pid(systemd, data.unit) not in (0, killed)
        wait_until("its readiness", lambda: systemd.show(data.unit, "ActiveState") == "active")
        assert data.is_live()
    finally:
        systemd.run("systemctl", "stop", "nfs-server.service", data.unit)
        Path("/etc/exports").write_text("")
    assert data.mounts() == []
    assert data.ends_clean()


def test_reload_begins_anew_beneath_its_users(systemd: Systemd, data: Volume) -> None:
    systemd.run("systemctl", "start", data.unit)
    before = data.status()
    read = f"exec 3<'{data.mountpoint}/file' && systemctl reload '{data.unit}' && cat <&3"
    assert systemd.run("sh", "-c", read) == "content"
    after = data.status()
    assert after["pid"] == before["pid"] == pid(systemd, data.unit)
    assert after["live_since"] > before["live_since"]
    systemd.run("systemctl", "stop", data.unit)
    assert data.ends_clean()


def test_boot_and_shutdown(systemd: Systemd, data: Volume) -> None:
    systemd.run("systemctl", "enable", data.unit)
    try:
        systemd.power_off()
        systemd.boot()
        assert systemd.show(data.unit, "ActiveState") == "active"
        assert data.is_live()
        systemd.run("touch", data.mountpoint / "more")
        systemd.power_off()
        systemd.boot()
        assert data.status()["repairs"] == []
        assert data.is_live()
    finally:
        systemd.run("systemctl", "disable", "--now", data.unit)
    assert data.ends_clean()


def line(data: Volume, source: str | Path) -> str:
    options = "name=data,nosuid,nodev,nofail,x-systemd.mount-timeout=infinity"
    return f"{source} {data.mountpoint} fusejournal {options} 0 0\n"


@pytest.mark.parametrize("source", ["backing", "volume"])
def test_fstab_by_hand(systemd: Systemd, data: Volume, source: str) -> None:
    FSTAB.write_text(line(data, data.backing if source == "backing" else "fusejournal:data"))
    systemd.run("mount", "-a")
    assert data.is_live()
    ((*_, kind, options, _, _),) = data.mounts()
    assert kind == "fuse.fusejournal"
    assert {"nosuid", "nodev"} <= set(options.split(","))
    layer = data.status()["pid"]
    systemd.run("mount", "-a")
    assert len(data.mounts()) == 1
    assert data.status()["pid"] == layer
    systemd.run("umount", data.mountpoint)
    systemd.run("mount", data.mountpoint)  # at once, while the layer may still be ending
    assert data.is_live()
    if source == "backing":  # mount(8) takes the other for mounted, dead as it is
        systemd.run("kill", "-9", str(data.status()["pid"]))
        systemd.run("mount", "-a")
        assert data.is_live()
    data.unmount()
    assert data.ends_clean()


def test_fstab_under_systemd(systemd: Systemd, data: Volume) -> None:
    FSTAB.write_text(line(data, data.backing))
    systemd.run("systemctl", "daemon-reload")
    unit = systemd.run("systemd-escape", "--path", "--suffix=mount", data.mountpoint).strip()
    systemd.run("systemctl", "start", unit)
    assert data.is_live()
    layer = data.status()["pid"]
    # It outlives the helper that started it, in the unit's own control group.
    assert unit in systemd.run("cat", f"/proc/{layer}/cgroup")
    systemd.run("mount", "-a")
    assert data.status()["pid"] == layer
    systemd.run("systemctl", "restart", unit)
    assert data.is_live()
    layer = data.status()["pid"]
    systemd.run("systemctl", "stop", unit)
    assert data.mounts() == []
    wait_until("its end", lambda: data.status()["pid"] is None)
    assert data.ends_clean()


def test_fstab_errors_are_told(systemd: Systemd, data: Volume) -> None:
    FSTAB.write_text(line(data, data.backing).replace("nofail", "nofail,gaga"))
    failed = systemd.result("mount", data.mountpoint)
    assert failed.returncode == 1
    assert "mount.fusejournal: unknown mount option 'gaga'" in failed.stderr
    assert systemd.result("mount", "-s", data.mountpoint).returncode == 0
    FSTAB.write_text(line(data, data.backing))
    systemd.run("mount", "-o", "remount,ro", data.mountpoint)
    assert systemd.result("touch", f"{data.mountpoint}/file").returncode == 1
    systemd.run("mount", "-o", "remount,rw", data.mountpoint)
    systemd.run("touch", f"{data.mountpoint}/file")
    # The same by the type that the mount has.
    FSTAB.write_text("")
    systemd.run("mount", "-o", "remount,ro", data.mountpoint)
    assert systemd.result("touch", f"{data.mountpoint}/file").returncode == 1
    systemd.run("mount", "-o", "remount,rw", data.mountpoint)
    FSTAB.write_text(line(data, "/nowhere").replace("name=data,", "name=other,"))
    systemd.run("umount", data.mountpoint)
    failed = systemd.result("mount", data.mountpoint)
    assert failed.returncode == 32
    assert "mount.fusejournal: /nowhere: No such file or directory" in failed.stderr
    assert systemd.result("mount", "-f", data.mountpoint).returncode == 0
    assert data.mounts() == []
