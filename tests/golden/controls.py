"""Samples of requests and answers over the control sockets of a layer, a witness and an agent; of
errors, of lines about work under way, and of typed answers.

A command line of one release asks the layer of another, which runs on until it is restarted."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fusejournal.admin.branch import BranchInfo
from fusejournal.admin.demote import Demoted
from fusejournal.admin.digest import DigestReport
from fusejournal.admin.export import ExportOption, ExportRemoved, ExportReport
from fusejournal.admin.handoff import HandedOver
from fusejournal.admin.mark import MarkMade
from fusejournal.admin.pair import PairingCode
from fusejournal.admin.promote import PromotionOutcome
from fusejournal.admin.rejoin import Rejoined
from fusejournal.admin.restore_report import RestoreReport
from fusejournal.admin.start import StartReport
from fusejournal.admin.version_store import StoreInitialized, StoreKeyId
from fusejournal.agent.console_replies import (
    ConsoleCode,
    ConsoleList,
    ConsolePairingState,
    ConsoleRemoved,
)
from fusejournal.backing.limits import BackingLimits
from fusejournal.console.agents import AgentPaired
from fusejournal.console.tokens import TokenMade
from fusejournal.console.users import UserAdded
from fusejournal.control.reply import Done, Reply
from fusejournal.node.replies import (
    Demoting,
    HookOutcome,
    LayerArguments,
    ModeFollowed,
    PromotionProgress,
    Restarting,
    SegmentsPruned,
    WitnessStatus,
)
from fusejournal.node.version_record import WorkOutcome
from fusejournal.node.volume_status import BranchesStatus, FlushWaits
from fusejournal.replication.peer_replies import (
    OpenedCode,
    PairedWith,
    PairingState,
    PeerAdded,
    PeerChanged,
    PeerList,
    PeerRemoved,
)
from fusejournal.replication.status import PeerInfo
from fusejournal.roles.plan import HandoffProgress, PeerVote, PromotionPlan
from fusejournal.volume.marks import MarkNoted
from fusejournal.wire.code_state import CodeState
from tests.golden.files import NOW_NS
from tests.golden.state_files import BASE, SCRUB
from tests.golden.statuses import MIRROR, PEER, PRIMARY, REPLICATION, VERSIONS

CODE = "7K3M-Q0ZV-ABCD-EFGH"
_PEER = PeerInfo(
    name="east", address="10.0.0.2:7710", fingerprint="SHA256:abc", paused=True,
    needs_copy="its journal is another", acked_seq=4699, return_address="10.0.0.2:7711",
)  # fmt: skip
_VOTE = PeerVote(peer="west", role="mirror", held_seq=4700, counts=False, detail="it is behind")
_PLAN = PromotionPlan(
    node="hall-data", reign="3/00000000000000ab", held_seq=4700, acknowledged_seq=4699,
    left_to_apply=7, primary="north", told_seq=4711, missing=11, silent_seconds=61.5,
    peers=(_VOTE,), words=1, words_needed=2, objections=("west is behind",),
    uncovered="north may still serve", has_fence=True,
)  # fmt: skip
_HANDOFF = HandoffProgress(
    peer="east", reign="3/00000000000000ab", stage="undone", head_seq=4711, applied_seq=4700,
    held_seconds=1.5, is_over=True, reason="east is too far behind", exit_code=7,
)  # fmt: skip
_WITNESS = WitnessStatus(
    node="witness-w", fingerprint="SHA256:abc", listen="10.0.0.9:7710",
    volume="01234567-89ab-cdef-0123-456789abcdef", reign="3/00000000000000ab",
    begun="2/00000000000000cd", primary="north", peers=("north", "east"), failure="no space left",
)  # fmt: skip
_PAIRING = PairingState(
    state=CodeState.PAIRED, seconds_left=580.5, wrong_tries=1, log=("the code is wrong",), logged=3,
    peer=_PEER,
)  # fmt: skip
_OPENED = OpenedCode(
    id=2, code=CODE, node="hall-data", fingerprint="SHA256:abc", listen="10.0.0.1:7710",
    seconds_left=600.0,
)  # fmt: skip
_CODE = PairingCode(
    **vars(_OPENED), command=f"fusejournal pair VOLUME hall-data=10.0.0.1:7710 {CODE}"
)
_REIGN = "3/00000000000000ab"
_OPTION = ExportOption(option="no_wdelay", why="each write is one entry")
REPLIES: tuple[Reply, ...] = (
    *(PRIMARY, PEER, MIRROR, VERSIONS, SCRUB, _PEER, _VOTE, _PLAN, _HANDOFF, _WITNESS),
    PRIMARY.troubles[0],
    *(_PAIRING, _CODE, _OPTION, BranchesStatus(count=2, bytes=9, keep_bytes=10, keep_days=30.5)),
    replace(REPLICATION, mirror=MIRROR),
    FlushWaits(bounds=(0.001, 1.0), counts=(90, 9, 1), seconds=2.5),
    BackingLimits(2**63 - 1, 65_536, 65_535, 1023, 255, 2**31 - 1, 511, 2**18 - 1),
    WorkOutcome(status=VERSIONS, done=True, again_in_seconds=3600.5),
    MarkMade(name="friday", seq=4712, time_ns=NOW_NS),
    PeerAdded(added=True, insecure=True, peer=_PEER),
    PeerRemoved(peer=_PEER),
    PeerChanged(changed=True, peer=_PEER),
    PeerList(node="hall-data", fingerprint="SHA256:def", peers=(_PEER,)),
    PairedWith(peer=_PEER, node="east-data"),
    BranchInfo(
        name="b-4701", parted="2/4700/abcd", first_seq=4701, head_seq=4711, entries=10,
        uids=(0, 1001), first_ns=NOW_NS, last_ns=NOW_NS + 1, source="east",
        reign="3/00000000000000ab", made_ns=NOW_NS + 2, age_seconds=86_400.5, bytes=4096,
        directory="/var/lib/fusejournal/data/branches/b-4701",
    ),
    Rejoined(
        volume="data", source="east", reign="3/00000000000000ab", rung=3, parted="2/4700/abcd",
        head_seq=4711, own_entries=11, files=5, contents=2, branch="b-4701", done=True,
        tree_seq=4690, tree_bytes=1 << 30, tree_files=77, fetched_bytes=4096, journal_bytes=9999,
    ),
    ExportReport(
        name="data", path="/srv/data", fsid="01234567-89ab-cdef-0123-456789abcdef",
        clients=("10.0.0.0/24",), options=(_OPTION,), line="/srv/data 10.0.0.0/24(no_wdelay)",
        file="/etc/exports.d/fusejournal.exports", written=True, nfsd_threads=8,
        mount="mount hall:/srv/data /mnt", warnings=("the disk is slow",),
    ),
    ExportRemoved(name="data", removed=True, left=("/etc/exports line 3",)),
    PromotionOutcome.of_plan(_PLAN, promoted=True),
    Demoted(volume="data", role="mirror", head_seq=4711),
    HandedOver(
        volume="data", peer="east", reign="3/00000000000000ab", follows="east-data", head_seq=4711,
    ),
    DigestReport(
        digest="0123abcd", of="data", path="home/anna", entries=12, files=9, directories=3,
        bytes=4096,
    ),
    RestoreReport(
        target="/restore/data", names=12, as_of_seq=4711,
        from_version="00000000-0000-0000-0000-00000000000a/0000000000004690",
    ),
    *(Done(), MarkNoted(seq=4712, time_ns=NOW_NS), _OPENED, Restarting(pid=4242)),
    LayerArguments(arguments=("mount", "data", "--foreground")),
    *(ModeFollowed(durability="nfs"), SegmentsPruned(segments=16)),
    *(Demoting(reign=_REIGN, head_seq=4711), PromotionProgress(left_to_apply=7)),
    ConsoleCode(
        code=CODE, node="hall-data", listen="10.0.0.1:7710", fingerprint="SHA256:abc",
        seconds_left=600.0,
    ),
    ConsolePairingState(
        state=CodeState.PAIRED, console="hall-console", fingerprint="SHA256:abc",
    ),
    *(ConsoleList(consoles=("hall-console",)), ConsoleRemoved(removed="hall-console")),
    UserAdded(name="anna", role="admin", code=CODE, previous_role="viewer"),
    TokenMade(name="backup", role="operator", token="fjt_token"),
    AgentPaired(agent="cellar", node="cellar-agent", fingerprint="SHA256:abc"),
    StoreInitialized(
        store="/backup/versions", id="0123abcd", key_id="89abcdef", recovery_key="ABCD-EFGH",
    ),
    StoreKeyId(key_id="89abcdef"),
    HookOutcome(status=1, output="it is in use\n"),
    StartReport(
        progress=("importing", 1, 9, "bytes"), warning="the backing is open", error="in use",
        exit_code=4, ready=True, imported=7,
    ),
)  # fmt: skip
"""A sample of each kind of typed answer, with all of its fields."""


class Asked(NamedTuple):
    """A command of a control socket."""

    request: dict[str, Any]
    """The fields that are sent with its name."""
    answer: dict[str, Any]
    reads: type[Reply] | None = None
    """The typed answer that the command line makes of it."""


def _only(reply: Reply, *without: str) -> dict[str, Any]:
    return {key: value for key, value in reply.to_json().items() if key not in without}


def _reply(kind: type[Reply]) -> dict[str, Any]:
    (found,) = (one for one in REPLIES if type(one) is kind)
    return found.to_json()


_MARKED = _reply(MarkNoted)
_FOLLOWED = {"follow": True}
NODE: dict[str, Asked] = {
    "status": Asked({}, _reply(type(PRIMARY)), type(PRIMARY)),
    "stop": Asked({"lazy": True}, _reply(Done), Done),
    "mark": Asked({"name": "friday"}, _MARKED, MarkNoted),
    "unmark": Asked({"name": "friday"}, _MARKED, MarkNoted),
    "restart": Asked({}, _reply(Restarting), Restarting),
    "arguments": Asked({}, _reply(LayerArguments), LayerArguments),
    "remounted": Asked({"read_only": True}, _reply(Done), Done),
    "exported": Asked({}, _reply(ModeFollowed), ModeFollowed),
    "prune": Asked({"base": BASE.to_json()}, _reply(SegmentsPruned), SegmentsPruned),
    "promote": Asked({"force": True, "dry_run": True, **_FOLLOWED}, _PLAN.to_json(), PromotionPlan),
    "demote": Asked(
        {"force": True, "timeout_seconds": 30.5, **_FOLLOWED},
        _reply(Demoting),
        Demoting,
    ),
    "handoff": Asked(
        {"peer": "east", "timeout_seconds": 30.5}, _HANDOFF.to_json(), HandoffProgress
    ),
    "handoff-progress": Asked({}, _HANDOFF.to_json(), HandoffProgress),
    "handoff-cancel": Asked({}, _HANDOFF.to_json(), HandoffProgress),
    "mend": Asked(
        {
            **{"fid": 7, "seq": 4711, "mtime_ns": NOW_NS, "offset": 4096, "data": "Y29udGVudA=="},
            **{"uid": 1001, "gid": 100, "mode": 0o640, "size": 4103},
            "xattrs": [["dXNlci5h", "Yg=="]],
        },
        _reply(Done),
        Done,
    ),
    "peer-add": Asked(
        {"name": "east", "address": "10.0.0.2:7710", "standby": True}, _reply(PeerAdded), PeerAdded
    ),
    "peer-remove": Asked({"name": "east"}, _reply(PeerRemoved), PeerRemoved),
    "peer-list": Asked({}, _reply(PeerList), PeerList),
    "peer-pause": Asked({"name": "east"}, _reply(PeerChanged), PeerChanged),
    "peer-resume": Asked({"name": "east"}, _reply(PeerChanged), PeerChanged),
    "pair-open": Asked({}, _OPENED.to_json(), OpenedCode),
    "pair-state": Asked({"id": 2}, _PAIRING.to_json(), PairingState),
    "pair-close": Asked({"id": 2}, _PAIRING.to_json(), PairingState),
    "pair-with": Asked(
        {"name": "east", "address": "10.0.0.2:7710", "code": CODE, "standby": True},
        _reply(PairedWith),
        PairedWith,
    ),
}
WITNESS: dict[str, Asked] = {
    "status": Asked({}, _WITNESS.to_json(), WitnessStatus),
    **{
        name: NODE[name]
        for name in ("peer-list", "peer-remove", "pair-open", "pair-state", "pair-close")
    },
}
AGENT: dict[str, Asked] = {
    "pair-open": Asked({}, _only(_CODE, "command", "id"), ConsoleCode),
    "pair-state": Asked({}, _reply(ConsolePairingState), ConsolePairingState),
    "console-list": Asked({}, _reply(ConsoleList), ConsoleList),
    "console-remove": Asked({"name": "hall-console"}, _reply(ConsoleRemoved), ConsoleRemoved),
}
SERVERS = {"node": NODE, "witness": WITNESS, "agent": AGENT}
LINES: dict[str, dict[str, Any]] = {
    "working": {"working": True},
    "working, promote": {"working": True, **_reply(PromotionProgress)},
    "refused": {"error": "in use", "exit_code": 4},
    "unknown": {"error": "not a command this layer knows", "exit_code": 2},
    "bug": {"error": "the layer failed to do it: KeyError('bug')", "exit_code": 1},
}
"""The lines that may come in place of an answer, or before it."""


def make_control(_: Path) -> object:
    """Return requests and answers of each socket; a layer's status is in status-v1."""
    return {
        "asked": {
            server: {
                name: {"request": {"command": name, **one.request}, "answer": one.answer}
                if one.reads is not type(PRIMARY)
                else {"request": {"command": name, **one.request}}
                for name, one in commands.items()
            }
            for server, commands in SERVERS.items()
        },
        "lines": LINES,
        "replies": {
            type(one).__name__: one.to_json() for one in REPLIES if type(one) is not type(PRIMARY)
        },
    }
