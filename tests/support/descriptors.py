"""Running out of descriptors."""

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LIMIT = 256


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Leaves the block nothing to open: this process has as many descriptors as it may have."""
    gc.collect()  # or what earlier tests left would make room in the midst
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, _LIMIT), hard))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
