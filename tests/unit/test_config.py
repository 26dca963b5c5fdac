"""Configuration files: every key known, every value checked."""

from pathlib import Path

import pytest

from fusejournal.config import Config, find_config, load_config
from fusejournal.errors import ConfigError


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
        ("[journal]\ncompress = 3", "journal.compress"),
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
