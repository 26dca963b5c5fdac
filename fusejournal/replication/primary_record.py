"""A mirror's primary as its receiver knows it, over all sessions: its state, how far this side is
behind it, and what was received.

Used from the event loop's thread."""

import time

from fusejournal.replication.catch_up import CatchUpMeter
from fusejournal.replication.lag import LagMeter
from fusejournal.replication.states import MIRROR_TRANSITIONS, MirrorEvent, MirrorState
from fusejournal.replication.status import MirrorStatus
from fusejournal.types import Seq
from fusejournal.volume.volume import Volume

_SILENT_SECONDS = 60.0
"""A primary that was silent for longer is reported as degraded."""
_LOST = "if it is lost and off, 'fusejournal promote --dry-run' here says what it would do"


class PrimaryRecord:
    """The primary of the mirror that has *volume*."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._lag_meter = LagMeter()
        self._progress = CatchUpMeter(self._lag_meter)
        self.state = MirrorState.WAITING
        self.primary: str | None = None
        """The node that sends, or sent last."""
        self.where: str | None = None
        """Its address; None while it is not connected."""
        self.source_head_seq = Seq(0)
        """The end of the primary's journal, as far as it has reported."""
        self.last_error: str | None = None
        self.received_bytes = 0
        self.batches = 0
        self.duplicates = 0
        self._heard_at: float | None = None
        self._began_at = time.monotonic()
        self._heard_time = time.time()
        """The time of that, or of the beginning of this record, for people."""

    @property
    def heard_seconds_ago(self) -> float | None:
        """None where nothing was heard yet."""
        return time.monotonic() - self._heard_at if self._heard_at is not None else None

    @property
    def lag_entries(self) -> int:
        """Entries of the primary that are not applied here, as far as it has reported them."""
        head_seq = max(self.source_head_seq, self._volume.journal.head_seq)
        return head_seq - self._applied_seq

    @property
    def _applied_seq(self) -> Seq:
        return self._volume.catalog.applied_seq

    def note(self, event: MirrorEvent, error: str | None = None) -> None:
        """Note *event*, which *error* explains to people; None leaves what was recorded last."""
        self.state = MIRROR_TRANSITIONS[self.state][event]
        if error is not None:
            self.last_error = error

    def disconnect(self) -> None:
        """Note that no primary is connected."""
        self.where = None

    def took(self, received_bytes: int) -> None:
        """Note that a batch of so many bytes was taken."""
        self.batches += 1
        self.received_bytes += received_bytes

    def passed_over(self) -> None:
        """Note that a batch came which is here already."""
        self.duplicates += 1

    def connect(self, node: str, where: str) -> None:
        """Note that *node*, at *where*, has greeted, and may ship."""
        self.primary, self.where = node, where
        self.note(MirrorEvent.GREETED)

    def begin(self, head_seq: Seq) -> None:
        """Note that batches come; the primary's journal ends with *head_seq*."""
        self.source_head_seq = head_seq
        self._lag_meter.note(head_seq)
        self._progress.begin(head_seq)
        self.note(MirrorEvent.BEGAN)
        self.last_error = None

    def heard(self) -> None:
        """Note that the primary has sent something, or is at it."""
        self._heard_at = time.monotonic()
        self._heard_time = time.time()

    def silence(self) -> str | None:
        """Returns a line that reports since when the primary has been silent and what to do, the
        same for as long as the silence lasts; None if it was heard within the last 60 s."""
        since_at = self._heard_at if self._heard_at is not None else self._began_at
        is_heard = time.monotonic() - since_at < _SILENT_SECONDS
        if is_heard or self.state is not MirrorState.WAITING:  # (one that is refused is not silent)
            return None
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._heard_time))
        if self.primary is None:
            return (
                f"no primary has called since {since}: see if it runs, if the two are paired "
                f"('fusejournal pair'), and if this node is not paused there; {_LOST}"
            )
        return (
            f"primary {self.primary}: silent since {since}: see if it runs, and if this node is "
            f"not paused there; {_LOST}"
        )

    def heard_of(self, head_seq: Seq) -> None:
        """Note that the primary's journal reaches to *head_seq*."""
        self.source_head_seq = max(self.source_head_seq, head_seq)
        self._lag_meter.note(self.source_head_seq)

    def sample(self) -> None:
        """Runs about once a second."""
        self._progress.sample(self._applied_seq, self.received_bytes)

    def display_state(self) -> MirrorState:
        """The state; a session that works is catching up or not by how far this side is."""
        if self.state is MirrorState.STREAMING and self._progress.is_catching_up(
            self._applied_seq, self.source_head_seq
        ):
            return MirrorState.CATCHING_UP
        return self.state

    def status(self, trouble: str | None) -> MirrorStatus:
        """Returns how receiving goes; *trouble* is what is wrong on this side."""
        journal = self._volume.journal
        head_seq, applied_seq = journal.head_seq, self._applied_seq
        entries_rate, bytes_rate = self._progress.rates()
        heard_seconds_ago = self.heard_seconds_ago
        return MirrorStatus(
            primary=self.primary,
            address=self.where,
            state=self.display_state(),
            source_head_seq=max(self.source_head_seq, head_seq),
            received_seq=head_seq,
            durable_seq=journal.durable_seq,
            applied_seq=applied_seq,
            lag_entries=self.lag_entries,
            lag_seconds=round(self._progress.lag_seconds(applied_seq, self.source_head_seq), 3),
            entries_per_second=round(entries_rate, 1),
            bytes_per_second=round(bytes_rate),
            eta_seconds=self._progress.eta_seconds(self.lag_entries),
            heard_seconds_ago=(
                round(heard_seconds_ago, 1) if heard_seconds_ago is not None else None
            ),
            received_bytes=self.received_bytes,
            batches=self.batches,
            duplicates=self.duplicates,
            last_error=self.last_error,
            trouble=trouble,
        )
