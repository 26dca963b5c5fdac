"""Calls an admin's programs around a change of the role: ``before`` it, ``after`` it (and whenever
the volume is live again in its role), and ``fence``, which is to make sure that an old primary is
off.

A program is a command line, split as a shell would and run without one, as root, in ``/``. It must
be one that only root can change. What it is to know is in its environment:

=========================  =======================================================================
``FUSEJOURNAL_WHEN``       ``before``, ``after`` or ``fence``
``FUSEJOURNAL_ROLE``       the role that the node gets, or has: ``primary`` or ``mirror``
``FUSEJOURNAL_REIGN``      the reign that it comes with
``FUSEJOURNAL_PEER``       the peer that was the primary, where that is known; to be fenced
``FUSEJOURNAL_VOLUME``     the volume's name; ``_MOUNTPOINT`` and ``_STATE`` its places
=========================  =======================================================================

Its output goes to the log. They are called one after the other, also those of two changes. Those
that are shipped run in one process (hook_process.py), as long as a change goes on. Used from the
event loop's thread."""

import logging
import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from fusejournal.config import HooksConfig
from fusejournal.disk.process import WORKING_DIRECTORY
from fusejournal.errors import HookFailedError
from fusejournal.node.hook_process import HookProcess, shipped
from fusejournal.node.spec import MountSpec
from fusejournal.volume.trouble import Trouble, TroubleKind

log = logging.getLogger(__name__)

_LINE_CHARS_MAX = 300
_LINES_MAX = 20


class RoleHooks:
    """The hooks of the mount *spec*, which lives as long as the process does."""

    def __init__(self, spec: MountSpec) -> None:
        self._config: HooksConfig = spec.config.hooks
        self._places = {
            "FUSEJOURNAL_VOLUME": spec.name,
            "FUSEJOURNAL_MOUNTPOINT": str(spec.mountpoint),
            "FUSEJOURNAL_STATE": str(spec.state_dir),
        }
        self._process = HookProcess()
        self._calling = trio.Lock()
        """Held by the task that calls some: those after a start may not be over when a change
        begins."""
        self._owed: str | None = None
        """The reign of the change before which some were called, and after which none were yet."""

    @property
    def can_fence(self) -> bool:
        """True if there is a program that makes sure that an old primary is off."""
        return self._config.fence is not None

    def prepare(self) -> None:
        """Have the process of the shipped ones start, because a change begins: callers wait once
        they are due."""
        config = self._config
        commands = (*config.before, *config.after, *([config.fence] if config.fence else ()))
        with suppress(HookFailedError, OSError):  # told when they are called
            if any(shipped(_checked(command)) is not None for command in commands):
                self._process.begin()

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator[None]:
        """Prepare for a change that the block goes on to, unless it raises, or is cancelled."""
        self.prepare()
        try:
            yield
        except BaseException:
            if not self._calling.locked():
                await self._process.end_aside()
            raise

    async def before(self, role: str, reign: str, peer: str) -> None:
        """Call what comes before the node gets *role*. Raises HookFailedError; those behind it are
        not called then. Cancelling ends the program."""
        self.prepare()
        async with self._calling:
            for command in self._config.before:
                self._owed = reign
                await self._run(command, "before", role, reign, peer)

    async def after(self, role: str, reign: str, peer: str) -> list[Trouble]:
        """Call what comes after the node has got *role*. Returns the failures. Cancelling ends the
        program."""
        failures = []
        async with self._calling:
            for command in self._config.after:
                try:
                    await self._run(command, "after", role, reign, peer)
                except HookFailedError as error:
                    log.error("%s", error)
                    failures.append(Trouble(TroubleKind.HOOK, str(error)))
            self._owed = None
            await self._process.end_aside()
        return failures

    def end(self, *, goes_on: bool) -> None:
        """End with the volume's process. Unless that *goes_on* as another program, which is to call
        what comes after, a change that was begun and has come to no end, because the process was
        stopped or failed, is followed by what comes after a node is a mirror: it serves nothing.
        Blocks."""
        try:
            if self._owed is not None and not goes_on:
                trio.run(self.after, "mirror", self._owed, "")
        finally:
            self._process.end()

    async def fence(self, reign: str, peer: str) -> None:
        """Return when *peer*, the old primary, is known to be off. Raises HookFailedError where it
        is not. Cancelling ends the program."""
        command = self._config.fence
        assert command is not None
        try:
            async with self._calling:
                await self._run(command, "fence", "primary", reign, peer)
        except HookFailedError as error:
            raise HookFailedError(
                command,
                f"{error.reason}; nothing is promoted: make sure that {peer or 'the old primary'} "
                "is off, then promote with --force",
            ) from None

    async def _run(self, command: str, when: str, role: str, reign: str, peer: str) -> None:
        arguments = _checked(command)
        told = {"WHEN": when, "ROLE": role, "REIGN": reign, "PEER": peer}
        environment = {
            **self._places,
            **{f"FUSEJOURNAL_{key}": value for key, value in told.items()},
        }
        began = trio.current_time()
        try:
            with trio.fail_after(self._config.timeout_seconds):
                status, output = await self._outcome(arguments, environment)
        except trio.TooSlowError:
            seconds = self._config.timeout_seconds
            raise HookFailedError(command, f"has not ended after {seconds:g} s") from None
        except OSError as error:
            raise HookFailedError(command, error.strerror or str(error)) from None
        lines = _lines(output)
        for line in lines:
            log.info("%s: %s", arguments[0], line)
        log.info("hook %s, %s: took %.2f s", command, when, trio.current_time() - began)
        if status != 0:
            last = f": {lines[-1]}" if lines else ""
            raise HookFailedError(command, f"ended with status {status}{last}")

    async def _outcome(
        self, arguments: Sequence[str], environment: dict[str, str]
    ) -> tuple[int, bytes]:
        """Returns the status and the output of the program with *arguments*. Cancelling ends it.
        Raises OSError."""
        ours = shipped(arguments)
        if ours is None:
            done = await trio.run_process(
                arguments,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
                cwd=WORKING_DIRECTORY,
                env={**os.environ, **environment},
            )
            return done.returncode, done.stdout or b""
        try:
            return await trio.to_thread.run_sync(
                self._process.run, ours, environment, abandon_on_cancel=True
            )
        except (trio.Cancelled, OSError):
            await self._process.end_aside()
            raise


@asynccontextmanager
async def undoing(
    after: Callable[[], Awaitable[object]], tasks: trio.Nursery | None
) -> AsyncIterator[None]:
    """Has the hooks called, by *after*, that give back what those before a change have taken away,
    where the block, which calls those and goes on to the change, raises. Where it is cancelled,
    as by a client that is gone, they are called in *tasks*, unless those end, too."""
    try:
        yield
    except Exception:
        with trio.CancelScope(shield=True):
            await after()
        raise
    except BaseException:  # cancelled; within a nursery, a group that says so
        if tasks is not None and not tasks.cancel_scope.cancel_called:
            tasks.start_soon(after)
        raise


def _checked(command: str) -> Sequence[str]:
    """Returns the arguments of *command*, whose program only root can change. Raises
    HookFailedError."""
    try:
        arguments = shlex.split(command)
        program = shutil.which(arguments[0])
    except (ValueError, IndexError):
        raise HookFailedError(command, "is no command line") from None
    if program is None:
        raise HookFailedError(command, "there is no such program")
    for path in (Path(program).resolve(), Path(program).resolve().parent):
        found = path.stat()
        is_sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_uid != 0 or (found.st_mode & 0o022 and not is_sticky):
            raise HookFailedError(command, f"{path}: others than root can change it")
    return [program, *arguments[1:]]


def _lines(output: bytes) -> list[str]:
    text = output.decode("utf-8", "replace")
    lines = [line.strip()[:_LINE_CHARS_MAX] for line in text.splitlines() if line.strip()]
    return ["".join(c if c.isprintable() else "?" for c in line) for line in lines[-_LINES_MAX:]]
