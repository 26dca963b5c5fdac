"""The same lives (test_lives.py) in a guest, where users have quotas and the machine's own clock is
put ahead and back.

Users' changes are refused by the file system with EDQUOT, as they would be without a layer, which
works without CAP_SYS_RESOURCE; recovery, a mirror and a replay have to come to the same tree all
the same, however little the users may have by then.

``FUSEJOURNAL_MODEL_LIVES`` says how many runs to make (3 by default)."""

import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.model.test_lives import Lives, live
from tests.support.disks import SmallDisk
from tests.support.layer import Layer
from tests.support.quotas import held_by_quotas, may_pass_quotas, set_quota
from tests.support.users import SOMEBODY, acting
from tests.support.volumes import check_copies

pytestmark = pytest.mark.guest

_USERS = (1000, 1001)
_HOUR = 3600
_DAY = 24 * _HOUR


class LivesWithQuotas(Lives):
    """Lives with quotas, and with a clock that leaps."""

    def __init__(self) -> None:
        self._stack, self._held = ExitStack(), ExitStack()
        super().__init__()

    def _make_places(self) -> dict[str, Path]:
        places = super()._make_places()
        images = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        self.disk = SmallDisk(images / "disk", self.base / "disk", 64, "-O", "quota")
        self._stack.callback(self.disk.remove)
        self.disk.unmount()
        self.disk.mount("usrquota")
        self.volume.mkdir()
        places["backing"] = self.disk.mountpoint / "backing"
        places["backing"].mkdir()
        (self.volume / "backing").symlink_to(places["backing"])
        self._held.enter_context(held_by_quotas())
        return places

    def _leave_places(self) -> None:
        self._held.close()
        self.disk.close_all()
        self._stack.close()

    def _set_quotas(self, kib: int, inodes: int) -> None:
        for uid in _USERS:
            set_quota(self.disk.device, uid, kib, inodes)

    @rule(kib=st.sampled_from((0, 4, 16, 100)), inodes=st.sampled_from((0, 1, 4, 20)))
    def set_quotas(self, kib: int, inodes: int) -> None:
        """Perhaps to less than the users have."""
        self._set_quotas(kib, inodes)

    @precondition(lambda self: self.opened is not None)
    @rule(seconds=st.sampled_from((-40 * _DAY, -2 * _HOUR, -3, 3, 2 * _HOUR, 40 * _DAY)))
    def set_clock(self, seconds: int) -> None:
        """The journal's times grow all the same."""
        assert self.opened is not None
        journal = self.opened.volume.journal
        before_ns = journal.last_time_ns
        time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
        assert journal.next_time() > before_ns
        if seconds < 0:
            # (Of what the machine's loss takes, what was changed before is known by the clock.)
            self.opened.make_checkpoint()

    def _check_copies(self, uuid: UUID) -> None:
        """Users may have nothing more, and root's powers, which a mirror keeps, suffice."""
        self._set_quotas(1, 1)
        self._held.close()
        assert may_pass_quotas()
        check_copies(self.volume, uuid, self.disk.mountpoint)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lives are on a disk that takes what volumes set."""
    subprocess.run(["modprobe", "-a", "loop", "quota_v2"], check=True)
    base = SmallDisk(Path("/dev/shm/base"), tmp_path / "base", 400)
    monkeypatch.setattr(tempfile, "tempdir", str(base.mountpoint))
    now = time.time()
    yield
    time.clock_settime(time.CLOCK_REALTIME, now)
    base.remove()


def _refusal(act: Callable[[int], object]) -> int | None:
    """Does *act* until it is refused. Returns the errno."""
    for number in range(100):
        try:
            act(number)
        except OSError as error:
            return error.errno
    return None


@pytest.mark.usefixtures("disk")
def test_a_user_is_held_by_a_quota_and_root_is_not(tmp_path: Path) -> None:
    """Through a layer, as without one."""
    disk = SmallDisk(Path("/dev/shm/quota"), tmp_path / "quota", 64, "-O", "quota")
    disk.unmount()
    disk.mount("usrquota")
    set_quota(disk.device, SOMEBODY, 64, 10)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    with Layer(tmp_path / "volume", backing=disk.mountpoint / "backing") as layer:
        layer.state = disk.mountpoint / "state"
        layer.start()
        layer.mountpoint.chmod(0o777)
        with acting(SOMEBODY), open(layer.mountpoint / "large", "wb", buffering=0) as file:
            assert _refusal(lambda _: file.write(bytes(4096))) == errno.EDQUOT
            made = lambda number: (layer.mountpoint / f"d{number}").mkdir()  # noqa: E731
            assert _refusal(made) == errno.EDQUOT
        assert (layer.mountpoint / "large").stat().st_size <= 64 << 10
        (layer.mountpoint / "roots").write_bytes(bytes(1 << 20))
        # Once it is a user's, root's work for that user ends there, too.
        with pytest.raises(OSError, match="quota"):
            os.chown(layer.mountpoint / "roots", SOMEBODY, -1)
        layer.stop()
        layer.check_rebuilt(disk.mountpoint / "rebuilt")
    disk.remove()


@pytest.mark.usefixtures("disk")
def test_lives_with_quotas_and_clocks() -> None:
    assert may_pass_quotas()
    live(LivesWithQuotas, 3)
