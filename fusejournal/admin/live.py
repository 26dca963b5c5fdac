"""Questions to a running layer. They load little, because most commands ask one."""

from fusejournal.control.client import ask
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import VolumeStatus


def live_status(state: VolumeState) -> VolumeStatus:
    """Returns the status of a volume as its layer has it. Raises NotRunningError where none runs or
    answers, FusejournalError."""
    return VolumeStatus.from_json(ask(state.directory, "status"))
