"""Pruning of a stopped volume by its policy: what would go, and that it goes."""

import errno
import fcntl
import json
import os
import struct
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fusejournal.admin.prune import Pruning
from fusejournal.admin.restore_in_place import Moment, planned_in_place
from fusejournal.admin.source import open_source
from fusejournal.admin.tree_source import TreeSource
from fusejournal.admin.versions import VolumeVersions
from fusejournal.cli.prune import prune
from fusejournal.cli.version import version
from fusejournal.config import StoreConfig
from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError
from fusejournal.journal import clock
from fusejournal.journal.base import load_base, save_base
from fusejournal.journal.drop import drop_segments
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.assemble import open_base
from fusejournal.node.journal_limits import PruningRefusedError
from fusejournal.node.state_dir import VolumeState, save_state
from fusejournal.objects.local import LocalStore
from fusejournal.objects.store import ObjectStore, put_same
from fusejournal.operations import Write
from fusejournal.roles.role import Role
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions import base_tree
from fusejournal.versions.base_tree import base_of
from fusejournal.versions.creators import register, unregister, workers
from fusejournal.versions.manifest import list_versions
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.place import StorePlace, open_place, read_place
from fusejournal.volume.base import prepare_base
from fusejournal.volume.checkpoint import CheckpointFile
from fusejournal.wire.block_messages import AskTree
from fusejournal.wire.frames import Message
from fusejournal.wire.session_states import SESSION_TRANSITIONS, SessionState, Side
from tests.golden.samples import MESSAGES
from tests.support.losses import Died, failing_at
from tests.support.workload import UUID_OF_WORKLOADS, make_directory, make_file, workload_of

_DAY = "[versions]\nkeep_last = 1\n"


def _volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the state directory of a volume without a journal yet."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "root"))
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    places = Path("/nowhere/backing"), Path("/nowhere/mounted")
    save_state(VolumeState(state, UUID_OF_WORKLOADS, "v", *places, 1, Role.PRIMARY))
    return state


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume with versions 10, 20 (named), 30 and 40 of its 60 entries."""
    state = _volume(tmp_path, monkeypatch)
    files = [make_file(Fid(3 + number), Fid(2), b"file%d" % number) for number in range(60)]
    workload = workload_of(make_directory(Fid(2), ROOT_FID, b"d"), *files)
    workload = replace(workload, segment_entries=15)
    (tmp_path / "policy.toml").write_text(_DAY)
    for seq, name in ((10, []), (20, ["called"]), (30, []), (40, [])):
        # (Of the last entry it is not known whether it held.)
        steps, models = workload.steps[: seq + 1], workload.models[: seq + 2]
        replace(workload, steps=steps, models=models).write(state / "journal")
        kept = str(tmp_path / "kept")
        assert not _version("store", "init", str(state), "--store", kept).exit_code
        assert not _version("create", str(state), *name).exit_code
        for path in list_segments(state / "journal"):
            path.unlink()
    workload.write(state / "journal")
    return state


def _version(*arguments: str) -> Result:
    return CliRunner().invoke(version, arguments)


def _prune(state: Path, *arguments: str) -> str:
    policy = str(state.parent / "policy.toml")
    done = CliRunner().invoke(prune, [str(state), "--config", policy, *arguments])
    assert done.exit_code == 0, done
    return done.output


def _seqs(state: Path) -> list[int]:
    lines = _version("list", str(state), "--json").output.splitlines()
    return [json.loads(line)["seq"] for line in lines]


def test_what_would_go_is_told(state: Path) -> None:
    lines = _prune(state, "--dry-run").splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["10", "20", "30", "40"]
    assert "goes: no rule keeps it" in lines[0]
    assert "keep: named (called)" in lines[1]
    assert "keep: the newest, last" in lines[3]
    assert "set keep_bytes or keep_days under [journal] in " in lines[4]
    assert lines[5].startswith("would delete 2 versions, and free ")
    assert _seqs(state) == [10, 20, 30, 40]
    found = json.loads(_prune(state, "--dry-run", "--json"))
    assert [one["seq"] for one in found["versions"] if not one["kept_as"]] == [10, 30]
    assert found["no_longer_restorable"] == []
    assert found["freed_bytes"] > 0


def test_who_is_waited_for_is_told_before(state: Path) -> None:
    place = read_place(state)
    assert place is not None
    store = open_place(place, writing=True)
    worker = register(store, "creator", "other")
    told = _prune(state, "--dry-run").splitlines()[5]
    assert told.endswith(f" in the store, once other (pid {worker.pid}) has ended")
    unregister(store, worker)
    dead = replace(worker, began="0")
    put_same(store, dead.name, json.dumps({"format": 1, **asdict(dead)}).encode())
    assert _prune(state, "--dry-run").splitlines()[5].endswith(" in the store")
    assert list(store.names("active/")) == [dead.name]  # nothing was changed


def test_a_policy_without_rules_is_told(state: Path) -> None:
    file = state.parent / "policy.toml"
    file.write_text("[journal]\nkeep_days = 30\n")
    lines = _prune(state, "--dry-run").splitlines()
    assert lines[4].startswith("of the journal nothing goes: none of its finished segments is ")
    assert lines[5].endswith(f"under [versions] in {file}")


def test_a_version_without_a_name_is_pointed_at(state: Path) -> None:
    assert not _version("create", str(state)).exit_code
    done = _version("create", str(state), "late")
    assert done.exit_code == 0
    seq = _seqs(state)[-1]
    assert f"it was made without a name, and gets none: use {seq} where 'late'" in done.stderr


def test_a_deletion_is_asked_for_on_a_terminal_alone(state: Path) -> None:
    refused = _version("delete", str(state), "called")
    assert "--yes" in str(refused.exception)
    assert 20 in _seqs(state)
    assert not _version("delete", str(state), "called", "--yes").exit_code


def test_it_goes(state: Path) -> None:
    would_free = json.loads(_prune(state, "--dry-run", "--json"))["freed_bytes"]
    assert not _version("protect", str(state), "30").exit_code
    assert "deleted 1 version, and freed " in _prune(state)
    assert _seqs(state) == [20, 30, 40]
    assert not _version("protect", str(state), "30", "--off").exit_code
    assert json.loads(_prune(state, "--json"))["freed_bytes"] <= would_free
    assert _seqs(state) == [20, 40]
    for seq in ("20", "40"):
        assert not _version("verify", str(state), seq, "--data").exit_code
    assert "deleted 0 versions" in _prune(state)


def test_nothing_is_collected_of_what_is_read(state: Path, tmp_path: Path) -> None:
    """By each who reads a version at length, for as long as it does."""
    place = read_place(state)
    assert place is not None
    store = open_place(place, writing=True)
    seen: list[list[str]] = []

    def look(*_: object) -> None:
        seen.append([one.work for one in workers(store)])

    versions = VolumeVersions(str(state))
    versions.verify("10", look, with_data=True)
    assert seen.pop() == ["reader"]
    if os.geteuid() == 0:
        versions.restore("10", b"", tmp_path / "target", look)
        assert seen.pop() == ["reader"]
    with planned_in_place(str(state), None, Moment(to_version="20"), look):
        look()
        assert seen.pop() == ["reader"]
        waiting = json.loads(_prune(state, "--json"))["waiting_for"]
        assert len(waiting) == 1
    told: list[Message] = []
    with closing(TreeSource(str(state), None, told.append)) as source:
        source.answer(AskTree(0))
        source.answer(AskTree(0))
        look()
        assert seen.pop() == ["reader"]
    assert len(told) == 2
    assert workers(store) == []
    assert json.loads(_prune(state, "--json"))["freed_bytes"] > 0


def test_a_clock_that_leapt_ahead_has_nothing_go(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last entry was made while it was a year ahead, so that its time tells no better."""
    day_ns = 86_400 * 10**9
    begun_ns = 10_000 * day_ns
    files = [make_file(Fid(3 + number), Fid(2), b"file%d" % number) for number in range(60)]
    workload = workload_of(make_directory(Fid(2), ROOT_FID, b"d"), *files)
    last = len(workload.steps) - 1
    steps = [
        step._replace(
            time_ns=begun_ns + number * day_ns // 24 + 365 * day_ns * (number >= last - 1)
        )
        for number, step in enumerate(workload.steps)
    ]
    for path in list_segments(state / "journal"):
        path.unlink()
    monkeypatch.setattr(clock, "now_ns", lambda: begun_ns)
    replace(workload, steps=steps, segment_entries=15).write(state / "journal")
    file = state.parent / "policy.toml"
    file.write_text("[journal]\nkeep_days = 30\n")
    plan = Pruning(str(state), file).plan().journal
    assert plan.wanted_seq > 40
    assert not plan.segments
    assert f"leapt ahead, by 365.0 days after entry {last - 1}" in plan.held_by[0]
    assert "of the journal nothing goes" not in _prune(state, "--dry-run")
    # What is beyond keep_bytes does not stay for that.
    file.write_text("[journal]\nkeep_days = 30\nkeep_bytes = 0\n")
    assert "leapt" not in " ".join(Pruning(str(state), file).plan().journal.held_by)


def test_its_base_is_read_as_the_configuration_says(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may be one that cannot be read without."""
    asked: list[StoreConfig] = []

    def opening(place: StorePlace, *, config: StoreConfig, **more: Any) -> ObjectStore:
        asked.append(config)
        return open_place(place, config=config, **more)

    monkeypatch.setattr(base_tree, "open_place", opening)
    monkeypatch.setenv("FUSEJOURNAL_CONFIG_ROOT", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    for path in (tmp_path / "policy.toml", tmp_path / "config" / "v.toml"):
        path.write_text(f"[store]\nrequest_seconds = {len(path.name)}\n")
    place = read_place(state)
    assert place is not None
    (made,) = (
        one
        for one in list_versions(LocalStore(Path(place.store)), UUID_OF_WORKLOADS)
        if one.seq == 30
    )
    known = base_of(made, place.id)
    save_base(state, known)
    drop_segments(state / "journal", known.seq)
    of_volume = open_source(str(state))
    told = VolumeVersions(str(state), config=tmp_path / "policy.toml")
    assert not asked
    for reader in (of_volume.reader, told.source.reader):
        assert reader.base is not None
        assert reader.base.base == known
        assert reader.base.node(ROOT_FID) is not None
    node = open_base(state, known, StoreConfig(request_seconds=5)).node(ROOT_FID)
    assert node is not None
    assert [one.request_seconds for one in asked] == [6, 11, 5]


def test_what_the_journal_does_not_have_either_is_lost(state: Path) -> None:
    """So it is where segments were removed by hand."""
    first, second = list_segments(state / "journal")[:2]
    assert 10 < int(second.stem) <= 20
    first.unlink()
    told = _prune(state, "--dry-run")
    assert "seq 10 could then no longer be restored; the nearest that can: after it seq 20" in told
    assert "seq 30" not in told
    assert "seq 10 can no longer be restored" in _prune(state)


def _may_go(state: Path) -> None:
    """Has the policy keep nothing of the journal, all of which is in the backing."""
    (state.parent / "policy.toml").write_text(_DAY + "[journal]\nkeep_bytes = 0\n")
    page = WatermarkPage(state / "watermarks", 1)
    page.write_rooted(Seq(60))
    page.sync()
    CheckpointFile(state / "checkpoint", page)._write(struct.pack("<Qq", 60, 0))
    page.close()


def _pins(state: Path) -> list[str]:
    return sorted(path.name for path in (state.parent / "kept/bases").glob("*-*"))


def test_two_prunings_at_once(state: Path) -> None:
    """The second one unpins nothing of the first, and begins with what that has come to."""
    _may_go(state)
    (state / "prune.lock").touch()
    with open(state / "prune.lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        done = CliRunner().invoke(
            prune, [str(state), "--config", str(state.parent / "policy.toml")]
        )
        assert isinstance(done.exception, PruningRefusedError)
        assert "is being pruned by another process" in str(done.exception)
        assert load_base(state) is None
    _prune(state)
    assert load_base(state) is not None


def test_the_base_stays_pinned(state: Path) -> None:
    _may_go(state)
    early = Pruning(str(state), state.parent / "policy.toml")
    plan = early.plan()
    assert plan.journal.segments
    _prune(state)
    base = load_base(state)
    assert base is not None
    (pin,) = _pins(state)
    assert pin.startswith(base.version)
    # What another one has planned before is refused or comes to the same, and the pin stays.
    with suppress(FusejournalError):
        early.carry_out(plan, lambda _, __: None)
    assert load_base(state) == base
    assert pin in _pins(state)
    # A pin that was lost comes back; meanwhile the record tells what stays.
    (state.parent / "kept/bases" / pin).rename(
        state.parent / "kept/bases" / pin.replace(base.version, "other")
    )
    refused = _version("delete", str(state), str(base.seq), "--yes")
    assert "stands for the beginning of a journal" in str(refused.exception)
    _prune(state)
    assert _pins(state) == [pin]
    assert base.seq in _seqs(state)


def test_the_power_fails_once_the_base_is_there(state: Path) -> None:
    """The segment behind it may have been begun just now: what was not flushed of it is zeros."""
    _may_go(state)
    labels: list[str] = []

    def listen(label: str) -> None:
        labels.append(label)
        if label == "journal.drop.unlink":
            raise Died

    pruning = Pruning(str(state), state.parent / "policy.toml")
    failpoints.listen(listen)
    try:
        with pytest.raises(Died):
            pruning.carry_out(pruning.plan(), lambda _, __: None)
    finally:
        failpoints.listen(None)
    base = load_base(state)
    assert base is not None
    behind = state / "journal" / f"{base.seq + 1:020}.fj"
    flushed = labels[: labels.index("journal.base.write")]
    if "journal.base.segment" not in flushed:
        behind.write_bytes(bytes(behind.stat().st_size))
    assert "journal.base.segments" in flushed  # and so is its name
    assert prepare_base(state, base.uuid, read_only=False) == base
    header, _ = JournalReader(state / "journal").beginning(behind)
    assert header.chain_before == base.chain


def test_where_that_cannot_be_flushed_nothing_goes(state: Path) -> None:
    _may_go(state)
    pruning = Pruning(str(state), state.parent / "policy.toml")
    before = list_segments(state / "journal")
    fault = OSError(errno.EIO, "Input/output error")
    with failing_at("journal.base.segment", 1, fault), pytest.raises(OSError, match="Input"):
        pruning.carry_out(pruning.plan(), lambda _, __: None)
    assert load_base(state) is None
    assert list_segments(state / "journal") == before


def _spoil_data(state: Path) -> dict[Path, bytes]:
    """Spoils the chunks in the store of the volume. Returns the packs as they were."""
    whole = {path: path.read_bytes() for path in (state.parent / "kept/packs").iterdir()}
    data = {path: content for path, content in whole.items() if content.startswith(b"FJPACK1D")}
    for path, content in data.items():
        path.write_bytes(content[:24] + bytes([content[24] ^ 1]) + content[25:])
    return data


def test_what_was_found_damaged_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pruning takes what it has read not long ago on trust: not once it was seen to be spoilt,
    because the journal may be the last to have what of it is still there."""
    state = _volume(tmp_path, monkeypatch)
    files = [make_file(Fid(2 + number), ROOT_FID, b"file%d" % number) for number in range(40)]
    writes = [Write(one.fid, 0, None) for one in files]
    workload = workload_of(*(step for both in zip(files, writes, strict=True) for step in both))
    random = Random(1)
    workload.steps = [
        step._replace(data=random.randbytes(2000)) if step.data else step for step in workload.steps
    ]
    workload.write(state / "journal")
    policy = tmp_path / "policy.toml"
    assert not _version("store", "init", str(state), "--store", str(tmp_path / "kept")).exit_code
    _may_go(state)
    policy.write_text("[journal]\nkeep_bytes = 40000\n")
    _prune(state)
    base = load_base(state)
    assert base is not None
    assert (state / "verified").exists()
    whole = _spoil_data(state)
    assert whole
    done = _version("verify", str(state), str(base.seq), "--data")
    assert isinstance(done.exception, StoreDamagedError)
    policy.write_text("[journal]\nkeep_bytes = 0\n")
    for _ in range(2):
        done = CliRunner().invoke(prune, [str(state), "--config", str(policy)])
        assert isinstance(done.exception, StoreDamagedError), done.output
        assert load_base(state) == base
    for path, content in whole.items():
        path.write_bytes(content)
    _prune(state)
    later = load_base(state)
    assert later is not None
    assert later.seq > base.seq


def test_a_source_of_a_tree_takes_what_the_table_has(state: Path) -> None:
    """Questions for blocks once it has told of a tree, and nothing else but those for trees."""
    for first, side_state in (([], SessionState.ASKING), ([AskTree(0)], SessionState.COPYING)):
        row = SESSION_TRANSITIONS[side_state][Side.LISTENER]
        for message in MESSAGES:
            ended = ""
            with closing(TreeSource(str(state), None, lambda _: None)) as source:
                for one in first:
                    source.answer(one)
                try:
                    source.answer(message)
                except (FusejournalError, OSError) as error:
                    ended = str(error)
            is_refused = f"may not come while {side_state.value}: the listener takes" in ended
            assert is_refused is (type(message) not in row), (message, ended)
