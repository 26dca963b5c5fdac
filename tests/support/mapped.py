"""Writing through a shared map. Source: mmap(2), signal(7) (SIGBUS)."""

import errno
import mmap
import os


def write_through_map(path: str, data: bytes) -> None:
    """Write *data* at the beginning of a file that is at least as long. A process of its own does
    it, because one whose layer dies ends by SIGBUS. Raises OSError: EIO then, too."""
    child = os.fork()
    if child == 0:
        number = errno.EIO
        try:
            with open(path, "r+b") as file:
                # Asked for length 0, mmap.mmap takes a size that cannot be had for 0: EINVAL.
                size = os.fstat(file.fileno()).st_size
                with mmap.mmap(file.fileno(), size) as pages:
                    pages[: len(data)] = data
                    pages.flush()
            number = 0
        except OSError as error:
            number = error.errno or number
        finally:
            os._exit(number)
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number:
        number = max(number, 0) or errno.EIO
        raise OSError(number, os.strerror(number), path)
