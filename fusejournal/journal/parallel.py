"""Work on many segments by several processes, results in order. Segments tell all they need by
themselves, so each can be read alone; Python reads one a process."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_WORKERS_MAX = 8


def map_in_order(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """``map(function, items)`` by as many processes as there are CPUs. *function* is a module's
    own (or a partial of one); items and results are pickled. At most two results a process wait to
    be taken, so memory is bounded. Closing the iterator ends the processes."""
    workers = min(len(os.sched_getaffinity(0)), len(items), _WORKERS_MAX)
    if workers <= 1:
        yield from map(function, items)
        return
    # Only here: one segment alone should not wait for it to load.
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Forking is quicker by far, but what threads hold would be held for ever in the child.
    method = "fork" if threading.active_count() == 1 else "forkserver"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, context, _ignore_interrupts) as pool:
        waiting: deque[Future[_Result]] = deque()
        rest = iter(items)
        try:
            for item in rest:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _ignore_interrupts() -> None:
    # Ctrl-C reaches every process of the terminal; the one that was asked says so and ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
