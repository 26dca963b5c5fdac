"""A node's parts are put together from a specification alone, and can be made again in the same
process, with another role."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from fusejournal.backing.root_mark import BackingRoot
from fusejournal.config import Config
from fusejournal.layer.connection import open_new
from fusejournal.layer.open_files import new_table
from fusejournal.node.assemble import (
    ServingParts,
    StartParts,
    assemble_layer,
    assemble_serving,
    assemble_start,
)
from fusejournal.node.holding import hold_or_make_volume
from fusejournal.node.hooks import RoleHooks
from fusejournal.node.spec import MountSpec
from fusejournal.node.start import _ask_peers
from fusejournal.node.state_dir import VolumeState
from fusejournal.operations import Mkdir
from fusejournal.roles.role import Role
from fusejournal.types import ROOT_FID, Epoch, Reign
from fusejournal.volume.trouble import TroubleKind
from fusejournal.wire.frames import Hello
from fusejournal.wire.session_connection import SessionConnection
from tests.support.volumes import SOMEBODY


class Silent:
    """A reporter that is not read."""

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def ready(self, imported: int) -> None: ...


def _spec(base: Path, role: str) -> MountSpec:
    backing = base / "backing"
    backing.mkdir(exist_ok=True)
    config = Config.of(
        {"volume": {"role": role}, "replication": {"listen": "127.0.0.1:0", "insecure": True}}
    )
    return MountSpec("vol", base / "state", backing, backing, config, False, frozenset())


def _assemble(spec: MountSpec, state: VolumeState) -> tuple[StartParts, ServingParts]:
    root_fd = os.open(spec.backing, os.O_RDONLY | os.O_DIRECTORY)
    start = assemble_start(
        spec,
        state,
        Silent(),
        RoleHooks(spec),
        root_fd,
        new_table(),
        is_taken_over=False,
    )
    startup = start.startup
    startup.open(read_only=False)
    startup.recover(read_only=False)
    for _ in startup.start_epoch_and_import(read_only=False):
        pass

    async def take_nothing_over(session: SessionConnection, greeting: Hello) -> None:
        raise AssertionError("nobody hands over here")

    serving = assemble_serving(
        spec,
        state,
        start,
        fail=startup.volume.fail,
        join_volume=startup.join_volume,
        make_take_over=lambda *_: take_nothing_over,
    )
    return start, serving


def _make_directory(start: StartParts, name: bytes) -> None:
    volume = start.startup.volume
    made = Mkdir(volume.new_fid(), ROOT_FID, name, 0o755, 0, 0, None, None)
    volume.commit(made, SOMEBODY)


async def test_parts_are_made_twice_in_one_process(tmp_path: Path) -> None:
    spec = _spec(tmp_path, "primary")
    for number in (1, 2):
        with hold_or_make_volume(spec) as state:
            start, serving = _assemble(spec, state)
            assert start.kernel_cache is None
            assert start.startup.volume.write_errno is None
            _make_directory(start, b"made %d" % number)
            assert serving.durability.durable_seq <= start.startup.volume.journal.head_seq
            # The second time another is to go on at once, and nothing is to take its time.
            start.startup.close(goes_on=number == 2)
            is_sealed = (state.directory / "catalog" / "seal").exists()
            assert is_sealed == (number == 1)
    assert sorted(os.listdir(spec.backing)) == ["made 1", "made 2"]


async def test_layers_are_made_twice_in_one_process(tmp_path: Path) -> None:
    """Each greets the kernel over a mount of its own."""
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    spec = replace(_spec(tmp_path, "primary"), mountpoint=mountpoint)
    for _ in range(2):
        with hold_or_make_volume(spec) as state:
            start, serving = _assemble(spec, state)
            table_fd = new_table()
            connection = open_new(start.startup.root.fd, table_fd, mountpoint, "vol", frozenset())
            try:
                layer = assemble_layer(spec, state, start, serving, connection)
                assert await layer.handshake.greet() == b""  # nothing was asked before
                assert layer.handshake.init_flags
                layer.handshake.close()
            finally:
                await trio.run_process(["umount", "-l", str(mountpoint)])
                os.close(connection.fd)
                os.close(table_fd)
                start.startup.close()


async def test_who_is_fenced_after_its_peers_were_asked_takes_no_changes(tmp_path: Path) -> None:
    """A promotion asks before the volume is closed: another may get this node's vote meanwhile."""
    spec = _spec(tmp_path, "primary")
    with hold_or_make_volume(spec) as state:
        start, _ = _assemble(spec, state)
        assert start.local is not None
        unopposed = await _ask_peers(Silent(), start, has_asked=True)
        assert unopposed.fenced is None
        start.local.fence.note(Reign(Epoch(3), 0xBEEF))
        standing = await _ask_peers(Silent(), start, has_asked=True)
        assert standing.fenced is not None
        assert standing.fenced.kind is TroubleKind.FENCED
        assert "another node is primary" in standing.fenced.text
        start.startup.close()


async def test_a_mirrors_parts_are_swapped_for_a_primarys(tmp_path: Path) -> None:
    """No role is changed here, only parts: those of the other role stand on the same directories,
    in the same process, and go on where the first ended."""
    primary = tmp_path / "primary"
    primary.mkdir()
    with hold_or_make_volume(_spec(primary, "primary")) as state:
        start, _ = _assemble(_spec(primary, "primary"), state)
        _make_directory(start, b"shipped")
        start.startup.close()
    spec = _spec(tmp_path, "mirror")
    with hold_or_make_volume(spec) as fresh:
        mirror = replace(fresh, uuid=state.uuid, role=Role.MIRROR)
        shutil.copytree(state.journal_dir, mirror.journal_dir)
        root_fd = os.open(spec.backing, os.O_RDONLY | os.O_DIRECTORY)
        BackingRoot(root_fd, state.uuid).mark()
        os.close(root_fd)
        start, _ = _assemble(spec, mirror)
        volume = start.startup.volume
        assert start.kernel_cache is not None
        assert volume.write_errno == errno.EROFS
        head_seq = volume.journal.head_seq
        assert (volume.catalog.applied_seq, os.listdir(spec.backing)) == (head_seq, ["shipped"])
        with pytest.raises(OSError, match="Read-only"):
            _make_directory(start, b"refused")
        start.startup.close()

        start, serving = _assemble(spec, replace(mirror, role=Role.PRIMARY))
        volume = start.startup.volume
        assert start.kernel_cache is None
        assert volume.write_errno is None
        assert volume.journal.head_seq == head_seq  # a mirror's backing has nothing to import
        _make_directory(start, b"made")
        assert volume.journal.head_seq == head_seq + 1
        assert serving.durability.try_flush_inline(volume.journal.head_seq) is not None
        start.startup.close()
    assert sorted(os.listdir(spec.backing)) == ["made", "shipped"]
