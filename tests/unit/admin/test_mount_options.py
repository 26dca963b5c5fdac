"""The options of a mount: those of the configuration, those of the command line, and those that
mount(8) gives its helper."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from fusejournal.admin.helper_options import HelperOptions, parse_helper_options
from fusejournal.admin.mount_options import (
    MountOptions,
    mount_flags,
    new_spec,
    replication_options,
    split_words,
)
from fusejournal.cli import mount_helper as helper
from fusejournal.disk import mount_flags as flags_module
from fusejournal.errors import UsageError


@pytest.mark.parametrize(
    ("configured", "words", "flags"),
    [
        ([], [], set()),
        (["nosuid"], ["nodev"], {"nosuid", "nodev"}),
        (["nosuid", "nodev"], ["suid"], {"nodev"}),
        (["ro"], ["rw"], set()),
        (["ro"], ["defaults"], {"ro"}),
        ([], ["nosuid", "suid"], set()),
        ([], ["suid", "nosuid"], {"nosuid"}),
        (["noexec"], ["exec", "noexec", "ro"], {"noexec", "ro"}),
        (["noatime"], ["relatime", "sync"], {"relatime", "sync"}),
        (
            ["strictatime", "dirsync", "lazytime"],
            ["norelatime", "nolazytime"],
            {"strictatime", "dirsync"},
        ),
        (["sync"], ["async", "nodiratime", "atime"], {"nodiratime"}),
        (["context=a:b:c"], ["context=a:b:d", "fscontext=x"], {"context=a:b:d", "fscontext=x"}),
    ],
)
def test_the_last_word_wins(configured: list[str], words: list[str], flags: set[str]) -> None:
    assert mount_flags(configured, words) == flags


def test_unknown_words_are_named() -> None:
    with pytest.raises(UsageError, match="'synchronous'"):
        mount_flags([], ["ro", "synchronous"])


@pytest.mark.parametrize(
    ("words", "configured", "durability"),
    [
        (["sync"], None, "nfs"),
        (["dirsync"], "async", "nfs"),
        (["sync"], "strict", "strict"),
        (["noatime"], None, None),
        (["sync", "async"], "async", "async"),
    ],
)
def test_who_mounts_sync_has_names_wait(
    words: list[str], configured: str | None, durability: str | None, tmp_path: Path
) -> None:
    config = tmp_path / "volume.toml"
    config.write_text(f'[volume]\ndurability = "{configured}"\n' if configured else "")
    asked = MountOptions(config, words)
    spec = new_spec(tmp_path / "b", tmp_path / "m", "name", tmp_path / "s", asked)
    assert spec.config.volume.durability == durability


def test_flags_are_the_kernels() -> None:
    """They are as a mount has them in mountinfo, and as mount(2) takes them."""
    assert flags_module.bits_of({"ro", "nosuid"}) == 1 | 2 | 1 << 21
    assert flags_module.bits_of({"noatime", "sync"}) == 1024 | 16
    assert flags_module.seen_in(["rw", "relatime", "user_id=0"]) == {"relatime"}
    assert flags_module.seen_in(["rw", "nodev"]) == {"nodev", "strictatime"}
    assert flags_module.are_equal({"nodev"}, {"nodev", "relatime"})
    assert not flags_module.are_equal({"nodev"}, {"nodev", "noatime"})
    assert flags_module.differ_in_file_system({"ro"}, {"nodev"})
    assert not flags_module.differ_in_file_system({"noexec"}, {"noatime"})


def test_words_in_quotes_may_have_commas() -> None:
    words = split_words(['ro,context="a:b:c,d"', "", "nodev"])
    assert words == ["ro", "context=a:b:c,d", "nodev"]
    assert split_words(MountOptions(None, words).as_arguments()[0][2:].split("\n")) == words


def parsed(*options: str, sloppy: bool = False) -> HelperOptions:
    return parse_helper_options(options, sloppy=sloppy)


def test_what_fstab_has_for_others_is_left_out() -> None:
    options = "rw,defaults,noauto,user,user=root,nofail,_netdev,x-systemd.automount,comment=a b"
    assert parsed(options, "X-mount.mkdir,iversion") == HelperOptions()


def test_what_every_file_system_takes_is_taken() -> None:
    words = ["async", "noatime", "strictatime", "lazytime", "sync", "dirsync", "norelatime"]
    assert parsed(",".join(words)).words == words


def test_a_remount_repeats_what_the_mount_has() -> None:
    options = "rw,nosuid,relatime,user_id=0,group_id=0,default_permissions,allow_other"
    assert parsed(f"{options},remount,ro").words == ["rw", "nosuid", "relatime", "ro"]
    assert parsed("remount").is_remount
    with pytest.raises(UsageError, match="'user_id=0'"):
        parsed(options)


def test_what_is_the_volumes_is_passed_on() -> None:
    chosen = parsed('rw,name=data,nosuid,state=/a/b,config="/a,b.toml"', "ro,suid")
    assert chosen == HelperOptions(
        "data", Path("/a/b"), Path("/a,b.toml"), ["nosuid", "ro", "suid"]
    )


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("names=x", "unknown mount option 'names=x'"),
        ("name=", "'name' needs a value"),
        ("state", "'state' needs a value"),
    ],
)
def test_what_is_not_known_is_named(option: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parsed(f"nosuid,{option}")


def test_a_sloppy_mount_leaves_out_what_is_not_known() -> None:
    assert parsed("gaga,nosuid,whatever=1", sloppy=True).words == ["nosuid"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["/a", "/b", "-f", "-o", "rw,nosuid"], 0, ""),
        (["/a", "/b", "-fnsv", "-o", "rw,gaga", "-t", "fusejournal"], 0, ""),
        (["/a", "/b", "-o", "gaga"], 1, "unknown mount option 'gaga'"),
        (["/a"], 1, "Missing argument"),
        (["/a", "/b", "--gaga"], 1, "No such option"),
        (["/a", "/b", "-N", "/nowhere"], 1, "namespace /nowhere: No such file"),
    ],
)
def test_exit_codes_are_mounts(arguments: list[str], code: int, told: str) -> None:
    result = CliRunner().invoke(helper.mount_helper, arguments, standalone_mode=False)
    assert (result.return_value if result.exception is None else result.exit_code) == code
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == (1 if told else 0)


# -- replication ---------------------------------------------------------------------------------


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "volume.toml"
    config.write_text(
        '[replication]\nlisten = "127.0.0.1:1"\nmirrors = 2\n'
        '[replication.peers]\neast = "10.0.0.1:1"\nwest = "10.0.0.2:1"\n'
    )
    changes = replication_options(
        role="mirror",
        listen="127.0.0.1:2",
        peers=("east=10.0.0.3:3", "north=[fe80::1]:4"),
        durability="strict",
        metrics="127.0.0.1:5",
    )
    asked = MountOptions(config, (), changes)
    spec = new_spec(tmp_path / "b", tmp_path / "m", "name", tmp_path / "s", asked)
    assert spec.role == "mirror"
    assert spec.config.volume.durability == "strict"
    assert spec.config.metrics.listen == "127.0.0.1:5"
    replication = spec.config.replication
    assert (replication.listen, replication.mirrors, replication.insecure) == (
        "127.0.0.1:2",
        2,
        False,
    )
    assert replication.peers == {
        "east": "10.0.0.3:3",
        "west": "10.0.0.2:1",
        "north": "[fe80::1]:4",
    }


def test_process_in_the_background_is_asked_the_same() -> None:
    changes = replication_options(
        "mirror", "127.0.0.1:2", ("a=h:1", "b=h:2"), True, "nfs", 1, "127.0.0.1:3"
    )
    arguments = MountOptions(Path("/etc/x.toml"), ("ro", "nosuid"), changes).as_arguments()
    assert arguments == [
        "-oro,nosuid",
        "--config=/etc/x.toml",
        "--role=mirror",
        "--durability=nfs",
        "--listen=127.0.0.1:2",
        "--insecure",
        "--mirrors=1",
        "--peer=a=h:1",
        "--peer=b=h:2",
        "--metrics=127.0.0.1:3",
    ]
    assert MountOptions(None, (), replication_options()).as_arguments() == []


def test_a_peer_is_named_once() -> None:
    for again in ("a=h:1", "a=h:2"):
        with pytest.raises(UsageError, match="--peer a is there twice"):
            replication_options(peers=("a=h:1", "b=h:3", again))


@pytest.mark.parametrize("peer", ["east", "=h:1", "east=", "east=h", "east=h:0", "a b=h:1"])
def test_what_is_no_peer_is_refused(peer: str) -> None:
    with pytest.raises(UsageError):
        replication_options(peers=(peer,))
