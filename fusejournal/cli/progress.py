"""Progress bars on stderr, on a terminal only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fusejournal.cli import text
from fusejournal.cli.interrupts import orderly_interrupts
from fusejournal.objects.store import ObjectTraffic
from fusejournal.types import Progress

_BAR_STEP = 1024


def traffic_words(traffic: ObjectTraffic | None, seconds: float) -> str:
    """The bytes that went to and came from a far store in so many seconds, and the rate."""
    if traffic is None:
        return ""
    if traffic.is_away:
        return "no answer: trying again"
    both = ((traffic.sent_bytes, "sent"), (traffic.received_bytes, "read"))
    words = [f"{text.size(amount)} {word}" for amount, word in both if amount]
    total = traffic.sent_bytes + traffic.received_bytes
    return ", ".join([*words, f"{text.size(total / max(seconds, 0.1))}/s"]) if words else ""


@contextmanager
def progress_bar(
    title: str,
    *,
    quiet: bool,
    in_bytes: bool,
    traffic: Callable[[], ObjectTraffic | None] = lambda: None,
) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for the length of the block; what it gives is called with what is done and the whole
    (None: not known), in bytes or things. What *traffic* returns is shown beside it."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    # Only here: a command that shows none should not wait for it to load.
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    class TrafficColumn(progress.ProgressColumn):
        """The traffic, also while a step waits for it."""

        def render(self, task: progress.Task) -> Text:
            return Text(traffic_words(traffic(), task.elapsed or 0.0))

    amount: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(),)
    if in_bytes:
        amount = (progress.DownloadColumn(), progress.TransferSpeedColumn())
    with progress.Progress(
        progress.TextColumn(title),
        progress.BarColumn(),
        *amount,
        progress.TimeRemainingColumn(),
        TrafficColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def watched(
    title: str, quiet: bool, traffic: Callable[[], ObjectTraffic | None] = lambda: None
) -> Iterator[Progress]:
    """A progress bar that also lets Ctrl-C end the work between two steps."""
    with (
        orderly_interrupts() as check,
        progress_bar(title, quiet=quiet, in_bytes=False, traffic=traffic) as advance,
    ):

        def progress(done: int, total: int | None) -> None:
            check()
            if done % _BAR_STEP == 0:
                advance(done, total)

        yield progress
