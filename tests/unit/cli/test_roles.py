"""Words in which commands tell of a role: a mount's, a rejoin's, and why a primary cannot turn."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from fusejournal.admin.demote import await_primary, demoted_words
from fusejournal.admin.rejoin import Rejoined
from fusejournal.admin.start import mounted_words
from fusejournal.cli.rejoin import _show
from fusejournal.control.server import serve_control
from fusejournal.errors import UsageError
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import Condition
from fusejournal.replication.local_node import check_becomes_mirror
from fusejournal.replication.states import MirrorState
from fusejournal.roles.plan import PromotionPlan
from fusejournal.roles.role import Role
from tests.golden.statuses import MIRROR, MIRROR_NODE, PRIMARY

READ_ONLY = replace(PRIMARY, state=Condition.READ_ONLY)

LEVEL = Rejoined(
    volume="data",
    source="east",
    reign="2/00000000000000ab",
    rung=1,
    parted="1/2045/00000000000000cd",
    head_seq=2045,
    own_entries=0,
    files=0,
    contents=0,
    done=False,
)
PARTED = replace(LEVEL, rung=2, head_seq=2050, own_entries=5, files=3, contents=1)


@pytest.mark.parametrize(
    ("told", "was_mirror", "last"),
    [
        (LEVEL, True, "nothing is here that is not there: mounted, it goes on by itself"),
        (
            LEVEL,
            False,
            "all that is here is there, too: nothing would be lost; 'fusejournal rejoin data' "
            "makes this primary a mirror of that",
        ),
        (
            replace(LEVEL, done=True),
            False,
            "nothing was to be undone; it is a mirror now: fusejournal mount data",
        ),
        (
            replace(PARTED, branch="b1", done=True),
            False,
            "it is a mirror now: fusejournal mount data",
        ),
        (
            replace(PARTED, branch="b1", done=True),
            True,
            "it is a mirror again: fusejournal mount data",
        ),
    ],
)
def test_a_rejoin_says_what_becomes_of_the_node(
    told: Rejoined, was_mirror: bool, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _show(told, was_mirror, False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("east goes by reign 2/00000000000000ab; both have the entries up to 2045")
    assert lines[-1] == last
    assert "rung" not in "".join(lines)


def test_a_primary_that_cannot_be_called_is_told_how() -> None:
    check_becomes_mirror("data", "10.0.0.1:7710")
    with pytest.raises(UsageError, match="fusejournal mount data --listen ADDR:PORT"):
        check_becomes_mirror("data", None)


def test_a_plan_says_what_may_be_lost_and_what_is() -> None:
    plan = PromotionPlan(
        node="hall-data", reign="3/00000000000000ab", held_seq=4711, acknowledged_seq=4699,
        left_to_apply=0, primary="north", told_seq=4711, missing=0, silent_seconds=6.2,
        peers=(), words=1, words_needed=2, objections=(),
    )  # fmt: skip
    assert dict(plan.rows())["lost"] == (
        "may be lost: whatever north did in the 6 s since it was heard last. Known to be lost: "
        "nothing. Up to entry 4699 this node has everything"
    )
    more = dict(replace(plan, missing=2, told_seq=4713).rows())["lost"]
    assert "Known to be lost: 2 entries that north told of (4712 to 4713)." in more


def test_a_demoted_primary_says_what_is_known() -> None:
    unknown = demoted_words("data", 438, None)
    assert unknown.startswith("data is a mirror now, with the entries up to 438; whether its")
    level = "'fusejournal umount data', 'fusejournal rejoin data', 'fusejournal mount data'"
    assert unknown.endswith(f"where that says diverged: {level}")
    mirror = replace(MIRROR, primary="east", state=MirrorState.STREAMING)
    assert demoted_words("data", 438, mirror).endswith("up to 438, and follows east")
    parted = demoted_words("data", 438, replace(mirror, state=MirrorState.DIVERGED))
    assert parted.endswith(f"up to 438, which east has not all: it has diverged: {level}")
    refused = demoted_words("data", 438, replace(mirror, state=MirrorState.REFUSED))
    assert refused.endswith("; east: refused: see 'fusejournal status data'")


async def test_a_primary_to_follow_is_waited_for(tmp_path: Path) -> None:
    """Until the two have compared their journals, or for a time."""
    state = VolumeState(tmp_path, uuid4(), "data", tmp_path, tmp_path, 1, Role.MIRROR)
    told = [PRIMARY]
    assert MIRROR_NODE.replication is not None
    for one in (MirrorState.WAITING, MirrorState.CONNECTING, MirrorState.DIVERGED):
        replication = replace(MIRROR_NODE.replication, mirror=replace(MIRROR, state=one))
        told.append(replace(MIRROR_NODE, replication=replication))

    async def status(_: dict[str, Any]) -> dict[str, Any]:
        return (told.pop(0) if len(told) > 1 else told[0]).to_json()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, tmp_path / "control.sock", {"status": status})
        found = await trio.to_thread.run_sync(await_primary, state, 60.0)
        assert found is not None
        assert found.state is MirrorState.DIVERGED
        told[:] = [PRIMARY]
        assert await trio.to_thread.run_sync(await_primary, state, 0.0) is None
        nursery.cancel_scope.cancel()


async def test_a_mount_says_what_comes_of_changes(tmp_path: Path) -> None:
    state = VolumeState(tmp_path, uuid4(), "data", tmp_path, tmp_path, 1)
    mounted = f"volume data is mounted at {tmp_path}"
    assert mounted_words(state, read_only=True) == f"{mounted}, to be read only"
    assert mounted_words(state, read_only=False) == f"{mounted}: changes there are journaled"
    mirror = replace(state, role=Role.MIRROR)
    assert mounted_words(mirror, read_only=False).endswith(
        ": a mirror, which only its primary changes"
    )
    new = replace(state, role=Role.UNINITIALIZED)
    assert mounted_words(new, read_only=False).endswith("'fusejournal pair data' here first")
    told = [PRIMARY, READ_ONLY]

    async def status(_: dict[str, Any]) -> dict[str, Any]:
        return told.pop(0).to_json()

    words = partial(mounted_words, state, read_only=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, tmp_path / "control.sock", {"status": status})
        assert await trio.to_thread.run_sync(words) == f"{mounted}: changes there are journaled"
        refusing = await trio.to_thread.run_sync(words)
        assert (
            refusing == f"{mounted}, but takes no change: 'fusejournal status data' says what to do"
        )
        nursery.cancel_scope.cancel()
