"""The status of a volume's versions, by what is known of them."""

import json
import resource
from pathlib import Path

import pytest

from fusejournal.config import Config, load_config
from fusejournal.errors import ConfigError
from fusejournal.node.disk_space import DiskSpace, low_disk
from fusejournal.node.spec import MountSpec
from fusejournal.node.version_record import load_version_status, save_version_status
from fusejournal.node.version_schedule import VersionSchedule
from fusejournal.node.volume_status import VersionStatus
from tests.golden.statuses import VERSIONS


def _spec(tmp_path: Path, config: str = "") -> MountSpec:
    file = tmp_path / "config.toml"
    file.write_text(config)
    return MountSpec(
        "data", tmp_path, tmp_path, tmp_path, load_config(file), False, frozenset(), None, file
    )


def _store(tmp_path: Path, id_: str, where: str = "/kept") -> None:
    (tmp_path / "store.json").write_text(json.dumps({"format": 1, "store": where, "id": id_}))


def test_what_is_known_is_that_of_the_store_there_is(tmp_path: Path) -> None:
    assert load_version_status(tmp_path) is None
    _store(tmp_path, VERSIONS.store_id)
    assert load_version_status(tmp_path) == VersionStatus(store="/kept", store_id=VERSIONS.store_id)
    save_version_status(tmp_path, VERSIONS)
    known = load_version_status(tmp_path)
    assert known is not None
    assert (known.store, known.last_seq) == ("/kept", VERSIONS.last_seq)
    _store(tmp_path, "another")
    known = load_version_status(tmp_path)
    assert known is not None
    assert known.last_seq is None
    (tmp_path / "versions.json").write_text("{")
    assert load_version_status(tmp_path) == known


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("looked", "soon"), ("pruned", []), ("made", True), ("last_made", float("nan"))),
        *(("working_since", 1e300), ("count", None), ("last_time_ns", 1 << 80), ("plan", 1.5)),
        *(("held_by", "it"), ("held_by", [1]), ("last_name", {}), ("reachable", 1)),
    ],
)
def test_what_cannot_be_is_not_known(tmp_path: Path, name: str, value: object) -> None:
    """The layer works by it, and must not end because of a file that can be made anew."""
    _store(tmp_path, VERSIONS.store_id)
    save_version_status(tmp_path, VERSIONS)
    path = tmp_path / "versions.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    assert load_version_status(tmp_path) == VersionStatus(store="/kept", store_id=VERSIONS.store_id)


def test_a_schedule_without_a_store_is_told(tmp_path: Path) -> None:
    schedule = VersionSchedule(_spec(tmp_path), is_mirror=False)
    assert list(schedule.degraded(schedule.status())) == []
    config = '[versions]\nevery = "1h"\nmade_by = "primary"\n'
    schedule = VersionSchedule(_spec(tmp_path, config), is_mirror=False)
    (told,) = schedule.degraded(schedule.status())
    assert "'fusejournal version store init data' makes one" in told.text
    schedule = VersionSchedule(_spec(tmp_path, config), is_mirror=True)
    assert list(schedule.degraded(schedule.status())) == []


def test_what_fails_is_told(tmp_path: Path) -> None:
    _store(tmp_path, VERSIONS.store_id)
    save_version_status(tmp_path, VERSIONS)
    schedule = VersionSchedule(_spec(tmp_path), is_mirror=False, reads_only=True)
    status = schedule.status()
    assert status is not None
    assert (status.working, status.next_make) == (None, None)
    first, second = (one.text for one in schedule.degraded(status))
    assert first.startswith("versions fail since 2023-11-14 ")
    assert first.endswith(": s3://bucket/versions: does not answer")
    assert second.startswith("of the versions 2 cannot be read")


def test_a_disk_that_comes_to_its_end() -> None:
    gib = 1 << 30
    for free, size, is_low in (
        (gib, 100 * gib, True),
        (6 * gib, 100 * gib, False),
        (5 * gib, 1000 * gib, False),
        (3 * gib, 1000 * gib, True),
    ):
        space = DiskSpace(free, size)
        assert space.is_low is is_low
        assert len(list(low_disk("data", Path("/state"), space))) == is_low


@pytest.mark.parametrize("text", ["1", "1m", "h", "-1h", "0s", "400d"])
def test_spans_that_are_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"versions\.every"):
        _spec(tmp_path, f'[versions]\nevery = "{text}"\n')


def test_spans() -> None:
    for text, seconds in (("90s", 90), ("30min", 1800), ("1h", 3600), ("1 d", 86_400)):
        config = Config.of({"versions": {"every": text}})
        assert config.versions.every == seconds


async def test_a_process_that_cannot_be_had_or_tells_nothing_is_a_failure(
    tmp_path: Path,
) -> None:
    """It never is the layer's end."""
    schedule = VersionSchedule(_spec(tmp_path), is_mirror=False)
    outcome = await schedule._run_process("make")  # the volume has no store
    assert not outcome.done
    assert "the making of a version ended with 1" in (outcome.status.error or "")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    try:
        outcome = await schedule._run_process("make")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert not outcome.done
    assert "has no process: " in (outcome.status.error or "")
