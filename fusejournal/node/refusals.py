"""Reasons of a start to refuse that can be determined before, while the volume's layer still runs:
a restart asks for it all before it ends anything, a start where it comes to it."""

from fusejournal.disk.process import file_bytes_max
from fusejournal.errors import MountError
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import VolumeState
from fusejournal.replication.local_node import check_listens


def check_next_start(spec: MountSpec, state: VolumeState, pid: int) -> None:
    """Refuse what the next start of *state* by *spec*, in process *pid*, would refuse. Raises
    FusejournalError."""
    check_file_limit(spec, pid)
    state.in_role(spec.role)
    if not spec.read_only and state.role.replicates:
        check_listens(state.is_mirror, state.listens_at(spec.config.replication.listen))


def check_file_limit(spec: MountSpec, pid: int = 0) -> None:
    """Refuse a journal whose files process *pid* (0: this one) may not write. Raises MountError."""
    if file_bytes_max(pid) < 2 * spec.config.journal.segment_bytes:
        raise MountError("files may not become large enough for a journal: see 'ulimit -f'")
