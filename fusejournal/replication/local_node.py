"""This node among others, mounted volume or not: its name and key, where it listens, the peers and
the reigns that it knows."""

from pathlib import Path
from uuid import UUID

from fusejournal.address import node_name, parse_address, parse_remote
from fusejournal.config import ReplicationConfig
from fusejournal.election.static import PersonsWord, parse_reign
from fusejournal.errors import UsageError
from fusejournal.journal.journal import Journal
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.replication.fence import Fence
from fusejournal.replication.member_record import MemberRecord
from fusejournal.replication.peers import PeerBook
from fusejournal.types import Reign, Seq
from fusejournal.wire.identity import Identity, fingerprint_of, load_or_make, node_id_of
from fusejournal.wire.session import HandshakeState


def check_listens(is_mirror: bool, listen: str | None) -> None:
    """Refuse a mirror that no node could call. Raises UsageError."""
    if is_mirror and listen is None:
        raise UsageError(
            "a mirror is called by its primary, and must listen: --listen ADDR:PORT (or mount "
            "it with -o ro, only to read it)"
        )


def check_becomes_mirror(name: str, listen: str | None) -> None:
    """Refuse to make the primary *name* a mirror that no node could call. Raises UsageError."""
    if listen is None:
        raise UsageError(
            f"{name} does not listen, and as a mirror it must: 'fusejournal umount {name} && "
            f"fusejournal mount {name} --listen ADDR:PORT', then this again"
        )


class LocalNode:
    """The node of one volume.

    Args:
        state_dir, name: the volume's state directory, and its name.
        config: the section of its configuration.
        is_mirror: its role.
        listen: the address that others connect to, as text; None: there is none.
        insecure: others may connect, and are connected to, without TLS.
        page: the node's watermarks.
        reign: the one that its role came with; None where that is the role of its first mount.

    Raises UsageError, ConfigError and other FusejournalErrors, OSError."""

    def __init__(
        self,
        state_dir: Path,
        name: str,
        config: ReplicationConfig,
        listen: str | None,
        insecure: bool,
        is_mirror: bool,
        page: WatermarkPage,
        reign: Reign | None = None,
    ) -> None:
        check_listens(is_mirror, listen)
        self.state_dir = state_dir
        self.config = config
        self.listen = parse_address(listen) if listen is not None else None
        self.insecure = insecure
        self.name = node_name(name)
        self.identity: Identity = load_or_make(state_dir / "identity", self.name)
        self.node_id = node_id_of(self.identity.fingerprint)
        self.page = page
        self.fence = Fence(
            page,
            self.node_id,
            PersonsWord(config.overrule),
            reign,
        )
        alone = config.begin_alone
        self.may_begin = parse_reign(alone, "begin_alone") if alone is not None else None
        """The reign that it may begin without votes enough, because a person says so."""
        self.members = MemberRecord(state_dir)
        self.book = PeerBook.load(state_dir)
        if self.book.merge({name: parse_remote(text) for name, text in config.peers.items()}):
            self.book.save()
        if self._turn_peers(is_mirror, reign):
            self.book.save()

    def _turn_peers(self, is_mirror: bool, reign: Reign | None) -> bool:
        """Have the book go by the role, also after a process crash right after that had
        changed. Returns whether it changed."""
        if not is_mirror:
            return self.book.turn_out()
        if reign is not None:
            for name, certificate in self.book.certificates().items():
                if node_id_of(fingerprint_of(certificate)) == reign.node_id:
                    return self.book.turn_back(name)
        return False

    def greeting(
        self, uuid: UUID | None, journal: Journal, reign: Reign, applied: Seq
    ) -> HandshakeState:
        """Returns what it reports of itself: of the volume *uuid* (None: any), by *reign*, with
        what is *applied* of *journal*."""
        return HandshakeState(
            self.name,
            uuid,
            journal.head,
            reign.epoch,
            applied,
            reign.node_id,
            self.node_id,
            self.fence.instance,
            self.fence.before,
            members=self.members.numbers,
        )
