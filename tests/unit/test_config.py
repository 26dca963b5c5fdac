"""Configuration files: every key known, every value checked."""

from pathlib import Path

import pytest

from fusejournal.config import Config, find_config, load_config
from fusejournal.errors import ConfigError
from fusejournal.node.spec import load_checked


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load_config(path)


def test_defaults(tmp_path: Path) -> None:
    assert load_config(None) == load(tmp_path, "") == Config()
    assert Config().journal.segment_bytes == 64 << 20


def test_values(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        '[volume]\ndurability = "nfs"\n[journal]\nsegment_bytes = "1 MiB"\ncompress = false\n'
        'flush_interval_seconds = 2\n[log]\nlevel = "debug"\n',
    )
    assert config.volume.durability == "nfs"
    assert config.journal.segment_bytes == 1 << 20
    assert config.journal.flush_interval_seconds == 2.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[jurnal]", "did you mean 'journal'"),
        ("[journal]\nsegmentbytes = 1", "did you mean 'journal.segment_bytes'"),
        ('[journal]\nsegment_bytes = "64 MB"', "none of B, KiB"),
        ("[journal]\nsegment_bytes = 1", "greater than or equal"),
        ('[volume]\ndurability = "never"', "volume.durability"),
        ('[volume]\noptions = ["suid"]', "volume.options"),
        ('[volume]\noptions = "nosuid"', "volume.options"),
        ("[journal", "not TOML"),
        ("[journal]\ncompress = 3", "journal.compress: Input should be a valid boolean"),
        ("journal = []", "journal: Input should be a table"),
        (
            "[journal]\nsegment_entries = true",
            "journal.segment_entries: Input should be a valid int",
        ),
        (
            "[journal]\nsegment_entries = 256.0",
            "journal.segment_entries: Input should be a valid int",
        ),
        (
            "[journal]\nkeep_days = nan",
            "journal.keep_days: Input should be greater than or equal to 0",
        ),
        ("[journal]\nkeep_days = inf", "Input should be less than or equal to 1000000"),
        ("[branches]\nkeep_days = inf", "Input should be less than or equal to 1000000"),
        (f"[journal]\nkeep_bytes = {'9' * 400}", "journal.keep_bytes: Input should be less than"),
        (f'[versions]\nevery = "{"9" * 400}d"', "versions.every: Input should be less than"),
        (f"[store]\nupload_bytes_per_second = {'9' * 400}", "Input should be less than or equal"),
        ("[branches]\nkeep_days = 0", "branches.keep_days: Input should be greater than 0"),
        (
            "[journal]\nflush_interval_seconds = 1e-320",
            "journal.flush_interval_seconds: Input should be greater than or equal to 0.001",
        ),
        (
            "[hooks]\ntimeout_seconds = 1e-9",
            "hooks.timeout_seconds: Input should be greater than or equal to 0.001",
        ),
        ("[journal]\nflush_interval_seconds = inf", "Input should be less than or equal to 60"),
        (
            f"[journal]\nkeep_days = {'9' * 400}",
            "journal.keep_days: Input should be a valid number",
        ),
        ('[volume]\noptions = ["ro", 1]', "volume.options.1: Input should be 'ro', 'nosuid', "),
        ('[volume]\nrole = "both"', "volume.role: Input should be 'primary' or 'mirror'"),
        ("[hooks]\nbefore = [1]", "hooks.before.0: Input should be a valid string"),
        ("[hooks]\nfence = 1", "hooks.fence: Input should be a valid string"),
        ("[replication]\npeers = []", "replication.peers: Input should be a table"),
        ("[replication.peers]\neast = 1", "replication.peers.east: Input should be a valid string"),
        ('[versions]\nevery = "99999d"', "versions.every: Input should be less than or equal to"),
        ('[log]\nlevel = "debug"\nlines = 3', "unknown key 'log.lines'"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "nothing")


def test_mount_options(tmp_path: Path) -> None:
    config = load(tmp_path, '[volume]\noptions = ["nosuid", "ro"]\n')
    assert config.volume.options == ("nosuid", "ro")
    assert Config().volume.options == ()


def test_the_file_of_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_CONFIG_ROOT", str(tmp_path))
    assert find_config("data") is None
    path = tmp_path / "data.toml"
    path.symlink_to(tmp_path / "nothing")
    assert find_config("data") == path  # and reading it says what is wrong
    with pytest.raises(ConfigError, match=r"data\.toml: No such file"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[replication]\nlisten = "nonsense"', "replication.listen: 'nonsense' is no address"),
        ('[replication]\nlisten = "127.0.0.1:70000"', "replication.listen: '127.0.0.1:70000' is"),
        ('[metrics]\nlisten = "x"', "metrics.listen: 'x' is no address"),
        ('[replication.peers]\neast = "10.0.0.1:99999"', "replication.peers.east: '10.0.0.1:9"),
        ('[replication.peers]\neast = "10.0.0.1:0"', "replication.peers.east: '10.0.0.1:0' is"),
        ('[replication.peers]\neast = ":7000"', "replication.peers.east: ':7000' is"),
        ('[replication.peers]\n"-x" = "a:1"', "replication.peers: '-x' cannot be a peer's name"),
        ('[journal]\nsegment_bytes = "1MB"', "journal.segment_bytes: the unit 'MB' is none of"),
    ],
)
def test_what_cannot_be_is_named_by_file_and_key(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_checked(path)
    assert str(caught.value).startswith(f"{path}: {told}")


def test_addresses_that_can_be(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for listen in ("none", ":1", "[::]:7710"):
        path.write_text(f'[replication]\nlisten = "{listen}"\npeers = {{east = "[fe80::1]:7"}}')
        assert load_checked(path).replication.listen == listen
    assert load_checked(None) == Config()
