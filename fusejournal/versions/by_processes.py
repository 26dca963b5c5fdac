"""Work in numbered units by several processes, forked from this one, so that they share what it has
read. Each takes the next unit that is not taken.

Where a process fails or is killed, this one does itself what is left: so an error is raised here,
as it is, and a kernel that was short of memory gets it back.
Where this one is killed, they end after the unit that they are at."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

_Result = TypeVar("_Result")

_PROCESSES_MAX = 8
_WAIT_SECONDS = 0.1


def by_processes(
    units: int,
    work: Callable[[int, bool], _Result],
    waiting: Callable[[], None],
    *,
    alone: bool = False,
) -> Generator[tuple[int, _Result], None, None]:
    """Yields the number of each unit and what *work* returns for it, which is pickled, in any
    order. *work* gets the number, and whether the unit may be done in part already. *waiting* is
    called meanwhile, and may raise. With *alone*, and where this process has other threads, which a
    fork would not take along, the units are done here. Closing the iterator ends the processes.
    Raises what *work* does."""
    processes = min(len(os.sched_getaffinity(0)), units, _PROCESSES_MAX)
    left = set(range(units))
    again = False
    if processes > 1 and not alone and threading.active_count() == 1:
        again = True
        pool = _Pool(units, work, processes)
        try:
            for unit, result in pool.results(waiting):
                left.remove(unit)
                yield unit, result
        finally:
            pool.end()
    for unit in sorted(left):
        waiting()
        yield unit, work(unit, again)


class _Pool(Generic[_Result]):
    """The processes."""

    def __init__(self, units: int, work: Callable[[int, bool], _Result], processes: int) -> None:
        # Only here, and below: a process that makes one file should not wait for it to load.
        import multiprocessing

        context = multiprocessing.get_context("fork")
        self._units = units
        self._work = work
        self._next = context.Value("q", 0)
        self._pipes: list[Connection] = []
        self._processes: list[ForkProcess] = []
        self._parent = os.getpid()
        for _ in range(processes):
            reader, writer = context.Pipe(duplex=False)
            self._pipes.append(reader)
            process = context.Process(target=self._run, args=(writer,), daemon=True)
            process.start()
            writer.close()
            self._processes.append(process)

    def _run(self, results: "Connection") -> None:
        """Does units, in a process of its own."""
        # Ctrl-C reaches every process of the terminal; the one that was asked says so and ends us.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # With a read end here, a send to a parent that was killed would block, and not get EPIPE.
        for pipe in self._pipes:
            pipe.close()
        while os.getppid() == self._parent:
            with self._next.get_lock():
                unit = self._next.value
                self._next.value += 1
            if unit >= self._units:
                return
            try:
                found = self._work(unit, False)
            except Exception:  # raised again by the process that asked, which does the unit anew
                return
            try:
                results.send((unit, found))
            except BrokenPipeError:  # the parent was killed
                return

    def results(self, waiting: Callable[[], None]) -> Iterator[tuple[int, _Result]]:
        """Yields results until no process sends any more, or one has ended without a word."""
        from multiprocessing.connection import Connection, wait

        pipes = list(self._pipes)
        while pipes:
            for pipe in wait(pipes, _WAIT_SECONDS):
                assert isinstance(pipe, Connection)
                try:
                    yield pipe.recv()
                except EOFError:
                    pipes.remove(pipe)
            waiting()

    def end(self) -> None:
        """Ends the processes, whatever they are at."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join()
            process.close()
            pipe.close()
