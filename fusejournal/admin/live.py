"""Questions to a running layer. They load little, because most commands ask one."""

from typing import Any

from fusejournal.control.client import ask
from fusejournal.errors import NotRunningError
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import VolumeStatus


def ask_layer(state: VolumeState, command: str, **fields: Any) -> dict[str, Any]:
    """Asks the layer of a volume. Raises NotRunningError, which says how to mount it where nobody
    has it, FusejournalError."""
    try:
        return ask(state.directory, command, **fields)
    except NotRunningError:
        if state.holder() is not None:
            raise
        raise NotRunningError(
            f"volume {state.name} is not mounted: fusejournal mount {state.name}"
        ) from None


def live_status(state: VolumeState) -> VolumeStatus:
    """Returns the status of a volume as its layer has it. Raises NotRunningError where none runs or
    answers, FusejournalError."""
    return VolumeStatus.from_json(ask_layer(state, "status"))
