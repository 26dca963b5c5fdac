"""State directories that no layer has mounted yet."""

from pathlib import Path

from fusejournal.config import Config
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import VolumeState


def spec(tmp_path: Path, name: str = "one", state: str = "states/one") -> MountSpec:
    """The volume *name*, whose state is in *state* below *tmp_path*, as are its other places."""
    return MountSpec(
        name,
        tmp_path / state,
        tmp_path / "backing",
        tmp_path / "mount",
        Config(),
        False,
        frozenset(),
    )


def with_journal(made: VolumeState) -> VolumeState:
    """Returns *made* once it has a journal of one segment, which is empty."""
    made.journal_dir.mkdir(exist_ok=True)
    (made.journal_dir / "1.fj").touch()
    return made
