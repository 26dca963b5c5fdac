"""A volume that is not mounted, whose versions are of times in the past."""

from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from fusejournal.admin.versions import VolumeVersions
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Mkdir
from fusejournal.types import ROOT_FID
from tests.support.nodes import make_volume
from tests.support.volumes import SOMEBODY, open_volume

_SECOND_NS = 10**9


def make_dated_versions(root: Path, store: Path, versions: Mapping[int, str]) -> None:
    """Makes the volume "dated" in *root*, a root of states, with a version of each of these times
    (in nanoseconds since 1970, growing), called so, in *store*."""
    make_volume(root / "state", "dated")
    for number, (time_ns, name) in enumerate(versions.items()):
        _make_directory(root, time_ns)
        kept = VolumeVersions("dated")
        if not number:
            kept.kept.init(str(store), encrypt=False)
        kept.create(name, lambda _, __: None)


def make_another(root: Path, time_ns: int) -> None:
    """Makes one more version, without a name."""
    _make_directory(root, time_ns)
    VolumeVersions("dated").create("", lambda _, __: None)


def _make_directory(root: Path, time_ns: int) -> None:
    # (An entry is a little behind the clock.)
    clock = mock.patch("fusejournal.journal.clock.now_ns", return_value=time_ns + _SECOND_NS)
    with clock, open_volume(root, uuid=load_state(root / "state").uuid) as volume:
        name = b"made-at-%d" % time_ns
        made = Mkdir(volume.volume.new_fid(), ROOT_FID, name, 0o40755, 0, 0, None, None)
        volume.volume.commit(made, SOMEBODY)
