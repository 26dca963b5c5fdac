"""Progress bars on stderr, on a terminal only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    title: str, *, quiet: bool, in_bytes: bool
) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for the length of the block; what it gives is called with what is done and the whole
    (None: not known), in bytes or things."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    # Only here: a command that shows none should not wait for it to load.
    from rich import progress
    from rich.console import Console

    amount: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(),)
    if in_bytes:
        amount = (progress.DownloadColumn(), progress.TransferSpeedColumn())
    with progress.Progress(
        progress.TextColumn(title),
        progress.BarColumn(),
        *amount,
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
