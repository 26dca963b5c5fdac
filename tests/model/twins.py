"""A layer and a plain directory, side by side: what is done to both has the same answers, and makes
the same trees."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypothesis.stateful import RuleBasedStateMachine

from tests.support.layer import Layer
from tests.support.trees import difference, image
from tests.support.users import in_process

_REASONS = frozenset({*errno.errorcode.values(), *map(str.encode, errno.errorcode.values())})


def _without_reasons(result: object) -> object:
    if isinstance(result, list):
        return [_without_reasons(one) for one in result]
    return "refused" if isinstance(result, str | bytes) and result in _REASONS else result


@contextmanager
def _as(uid: int, umask: int = 0o022) -> Iterator[None]:
    """Do what is inside as another user."""
    old = os.umask(umask)
    if uid:
        os.setegid(uid)
        os.seteuid(uid)
    try:
        yield
    finally:
        if uid:
            os.seteuid(0)
            os.setegid(0)
        os.umask(old)


class Twins(RuleBasedStateMachine):
    """The two trees. ``self.roots[0]`` is the backing until the first mount, then the mount."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="fusejournal-model."))
        self.base.chmod(0o755)
        self.layer = Layer(self.base)
        self.plain = self.base / "plain"
        self.plain.mkdir()
        (self.base / "elsewhere").mkdir()
        for root in (self.layer.backing, self.plain):
            root.chmod(0o777)
        self.roots = [os.fsencode(self.layer.backing), os.fsencode(self.plain)]
        self.held: dict[int, list[int]] = {}
        self.locked = 0
        """So many files are immutable."""
        self.steps_since_stop = 0

    def both(self, act: Callable[[bytes], object], uid: int = 0, umask: int = 0o022) -> None:
        """Do *act* under both roots, and compare what comes of it."""
        self.steps_since_stop += 1
        results: list[object] = []
        for root in self.roots:
            try:
                with _as(uid, umask):
                    results.append(act(root + b"/"))
            except OSError as error:
                results.append(errno.errorcode[error.errno or 0])
        if self.locked:
            # Which of several reasons to refuse something comes first, is the kernel's affair.
            results = [_without_reasons(result) for result in results]
        assert results[0] == results[1]

    def both_in_process(
        self, uid: int, act: Callable[[bytes], object], limits: dict[int, int] | None = None
    ) -> None:
        """Does :meth:`both` in a process that is limited."""
        self.both(lambda root: in_process(uid, lambda: act(root), limits))

    def both_held(self, slot: int, act: Callable[[int], object]) -> None:
        """Do *act* on both descriptors of *slot*, if it is taken."""
        if slot in self.held:
            descriptors = iter(self.held[slot])
            self.both(lambda _: act(next(descriptors)))

    def close_held(self, slot: int) -> None:
        """Close both descriptors of *slot*, if it is taken."""
        for fd in self.held.pop(slot, ()):
            with suppress(OSError):
                os.close(fd)

    def compare(self) -> None:
        """Both trees are the same but for times."""
        found = difference(
            image(self.layer.mountpoint, times=False), image(self.plain, times=False)
        )
        assert not found, found

    def teardown(self) -> None:
        """The journal alone gives the backing's tree."""
        try:
            for slot in tuple(self.held):
                self.close_held(slot)
            if self.layer.is_alive():
                self.compare()
                self.layer.stop()
                assert "ERROR" not in self.layer.words(), self.layer.words()
                self.layer.check_rebuilt(self.base / "rebuilt")
        finally:
            self.layer.kill()
            self.layer.detach()
            if self.locked:
                trees = str(self.plain), str(self.base / "rebuilt")
                command = "chattr", "-R", "-f", "-i", *trees
                subprocess.run(command, check=False, capture_output=True)
            shutil.rmtree(self.base)
