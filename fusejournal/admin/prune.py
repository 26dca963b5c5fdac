"""Pruning of a volume by its policy: what goes, as a plan that can be shown, and letting it go. The
layer need not be running."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusejournal.address import node_name
from fusejournal.admin.live import live_status
from fusejournal.admin.prune_journal import JournalPlan, JournalPruning
from fusejournal.admin.versions import VolumeVersions
from fusejournal.config import VersionsConfig, config_root, find_config
from fusejournal.errors import NotRunningError
from fusejournal.node.registry import find_volume
from fusejournal.node.spec import load_checked
from fusejournal.node.volume_status import VersionStatus
from fusejournal.objects.service import do_not_wait
from fusejournal.objects.store import ObjectTraffic
from fusejournal.types import Progress, Seq
from fusejournal.versions.bases import pinned_keys
from fusejournal.versions.collect import NOTHING_COLLECTED, Collected, collect
from fusejournal.versions.create import delete_version
from fusejournal.versions.manifest import Version, protected_keys
from fusejournal.versions.policy import PolicyVerdict, has_rules, judge


def _config_of_layer(volume: str) -> Path | None:
    try:
        file = live_status(find_volume(volume)).configuration
    except NotRunningError:
        return None
    return Path(file) if file is not None else None


@dataclass(frozen=True)
class LostMoment:
    """A moment that cannot be restored any more, and the nearest ones that can, if there are any:
    seqs."""

    seq: Seq
    earlier: Seq | None
    later: Seq | None


@dataclass(frozen=True)
class PrunePlan:
    """Everything that pruning comes to."""

    verdicts: tuple[PolicyVerdict, ...]
    """All versions, by seq."""
    lost: tuple[LostMoment, ...]
    journal: JournalPlan

    @property
    def going(self) -> list[Version]:
        """The versions that go."""
        return [one.version for one in self.verdicts if not one.stays]

    def to_json(self, collected: Collected) -> dict[str, Any]:
        """Returns what ``prune --json`` prints."""
        return {
            "versions": [
                {"seq": one.version.seq, "name": one.version.name, "kept_as": list(one.reasons)}
                for one in self.verdicts
            ],
            "no_longer_restorable": [
                {"seq": one.seq, "nearest_earlier": one.earlier, "nearest_later": one.later}
                for one in self.lost
            ],
            "journal": self.journal.to_json(),
            "freed_bytes": collected.removed_bytes,
            "waiting_for": [worker.node for worker in collected.waiting_for],
            "unreadable": [one.key for one in collected.unreadable],
        }


class Pruning:
    """One pruning of the volume *volume*, by the configuration in *config*, or else by the one
    that it is mounted with, or, where no layer runs, would be without a file named."""

    def __init__(
        self,
        volume: str,
        config: Path | None = None,
        waiting: Callable[[], None] = do_not_wait,
    ) -> None:
        """*waiting*: see VolumeVersions. Raises VolumeNotFoundError, JournalError, UsageError,
        ConfigError."""
        config = config or _config_of_layer(volume)
        self._versions = VolumeVersions(volume, waiting, config)
        self.name = self._versions.name
        file = config or find_config(self.name)
        self._config = load_checked(file)
        self._file = file or config_root() / f"{self.name}.toml"
        self._journal = JournalPruning(self._versions, self._config.journal)

    def remarks(self, plan: PrunePlan) -> list[str]:
        """Returns, a line each, why nothing of *plan* goes where nothing holds it back."""
        journal, versions = self._config.journal, self._config.versions
        lines = []
        if journal.keep_bytes is None and journal.keep_days is None:
            lines.append(
                "the journal is kept whole: to have its beginning go, "
                f"set keep_bytes or keep_days under [journal] in {self._file}"
            )
        elif not plan.journal.segments and not plan.journal.held_by:
            lines.append(
                "of the journal nothing goes: none of its finished segments is beyond keep_bytes "
                "or keep_days"
            )
        if not has_rules(versions):
            lines.append(
                "all versions are kept: to have old ones go, "
                f"set keep_last or keep_daily and the like under [versions] in {self._file}"
            )
        return lines

    def traffic(self) -> ObjectTraffic | None:
        """Returns what went to and came from the store, if it is a far one that was opened."""
        return self._versions.traffic()

    def plan(self) -> PrunePlan:
        """Returns what would go. Versions of histories that lost, and those that cannot be read,
        are no policy's: they stay, and count for nothing. Raises JournalDamagedError,
        StoreDamagedError, StoreError, FusejournalError."""
        journal = self._journal.plan()
        verdicts = self.verdicts()
        return PrunePlan(tuple(verdicts), tuple(self._lost(verdicts, journal.base_seq)), journal)

    def verdicts(self) -> list[PolicyVerdict]:
        """Returns what the policy says of each version, by seq. Raises StoreDamagedError,
        StoreError, FusejournalError."""
        listed = [one for one in self._versions.all().versions if one.history != "lost"]
        protected = {one.version.key for one in listed if one.is_protected}
        bases = pinned_keys(self._versions.store())
        return judge([one.version for one in listed], self.policy, protected, bases)

    @property
    def policy(self) -> VersionsConfig:
        """The schedule and the policy of the volume's versions."""
        return self._config.versions

    def _lost(self, verdicts: list[PolicyVerdict], base_seq: Seq) -> list[LostMoment]:
        """Returns the moments of versions that go where the journal, which then begins after entry
        *base_seq*, does not tell them either."""
        first_seq = self._versions.source.reader.first_seq
        kept = [one.version.seq for one in verdicts if one.stays]
        begins = [base_seq] if base_seq or first_seq == 1 else []
        begins += [seq for seq in kept if seq >= first_seq - 1]
        found = []
        for one in verdicts:
            seq = one.version.seq
            if one.stays or (begins and begins[0] <= seq):
                continue
            if base_seq:
                kept = sorted({*kept, base_seq})
            earlier = max((other for other in kept if other < seq), default=None)
            later = min((other for other in kept if other > seq), default=None)
            found.append(LostMoment(seq, earlier, later))
        return found

    def next_by_layer(self) -> float | None:
        """Returns when the layer prunes next by its schedule, in seconds since 1970; None where it
        has none, or does not run."""
        versions = self.status_of_layer()
        return versions.next_prune if versions is not None else None

    def status_of_layer(self) -> VersionStatus | None:
        """Returns what the layer knows of the versions; None where it does not run, or knows of no
        store."""
        try:
            return live_status(self._versions.state).versions
        except NotRunningError:
            return None

    def would_free(self, plan: PrunePlan, progress: Progress) -> Collected:
        """Returns what collecting the store would come to once *plan* was carried out. Raises
        StoreDamagedError, StoreError."""
        keys = {one.key for one in plan.going}
        store = self._versions.store()
        return collect(store, node_name(self.name), progress, dry_run=True, without=keys)

    def carry_out(
        self, plan: PrunePlan, progress: Progress, *, collecting: bool = True
    ) -> Collected:
        """Have the beginning of the journal go, once a version stands for it; delete the versions
        that go, but for those that are protected or stand for a journal by now; and collect the
        store, unless *collecting* is False. Stopped at any point, it is gone on with by the next
        pruning. Raises what JournalPruning.carry_out raises; BusyError, StoreDamagedError,
        StoreFullError, StoreError."""
        self._journal.carry_out(plan.journal, progress)
        store = self._versions.store(writing=True)
        node = node_name(self.name)
        for version in plan.going:
            if version.key not in protected_keys(store) | pinned_keys(store):
                delete_version(store, version.key, node)
        return collect(store, node, progress) if collecting else NOTHING_COLLECTED
