"""Progress bars on stderr, on a terminal only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def progress_bar(
    title: str, *, quiet: bool, in_bytes: bool
) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for the length of the block; what it gives is called with what is done and the whole
    (None: not known), in bytes or things."""
    console = Console(stderr=True)
    amount: tuple[ProgressColumn, ...] = (MofNCompleteColumn(),)
    if in_bytes:
        amount = (DownloadColumn(), TransferSpeedColumn())
    with Progress(
        TextColumn(title),
        BarColumn(),
        *amount,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
