"""fusejournal commands in processes of their own, forked from one that has the program loaded: the
interpreter's start and the imports cost more than most commands do, in a guest a second and more.

That process is multiprocessing's fork server. It is started before a test has anything open, so
nothing of a test's reaches a command but what is passed here."""

import atexit
import ctypes
import importlib
import multiprocessing
import os
import pkgutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import fusejournal.cli

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "fusejournal.node.start",
        "tests.support.forked",
        *(
            f"fusejournal.cli.{module.name}"
            for module in pkgutil.iter_modules(fusejournal.cli.__path__)
        ),
        "tests.support.preloaded",
    ]
)


PROGRAM = "fusejournal.cli.main:main"


def _main(
    program: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    cwd: str,
    out: str,
    err: str,
    namespace: str,
) -> None:
    if namespace:
        enter_namespace(namespace)
    module, _, name = program.partition(":")
    main = getattr(importlib.import_module(module), name)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(fd, number)
        os.close(fd)
    sys.argv = ["fusejournal", *arguments]
    code: object = 0
    try:
        main()
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # As an interpreter ends, which is not how multiprocessing ends its children: those wait for
    # processes of their own before these are told to end.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


class Forked:
    """One command; ``returncode`` and the methods are those of :class:`subprocess.Popen`."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        cwd: Path | str = "/",
        out: Path | str = os.devnull,
        err: Path | str = os.devnull,
        program: str = PROGRAM,
        namespace: str = "",
    ) -> None:
        """Begin *program*, a function without arguments of its own, with *arguments* in *cwd*; what
        it writes is appended to *out* and *err*. *namespace*: that of the network it is in."""
        texts = str(cwd), str(out), str(err), namespace
        self._process = _SERVER.Process(
            target=_main, args=(program, list(arguments), dict(environment), *texts)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; a signal's number is negative."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Returns the same as ``returncode``."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self._process.exitcode


def enter_namespace(name: str) -> None:
    """Enter a network namespace, by the name that ip(8) has for it. Raises OSError."""
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, 0):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(fd)


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    check: bool,
    timeout: float,
    namespace: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in the current directory, as :func:`subprocess.run` does."""
    with TemporaryDirectory(prefix="fusejournal-forked-") as directory:
        out, err = Path(directory, "out"), Path(directory, "err")
        command = Forked(
            arguments, environment, cwd=os.getcwd(), out=out, err=err, namespace=namespace
        )
        try:
            code = command.wait(timeout)
        except subprocess.TimeoutExpired:
            command.send_signal(9)
            raise
        done = subprocess.CompletedProcess(
            ["fusejournal", *arguments], code, out.read_text(), err.read_text()
        )
    if check:
        done.check_returncode()
    return done
