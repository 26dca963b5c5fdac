"""Ctrl-C while something far away is waited for."""

import os
import signal
import threading

import pytest

from fusejournal.cli.interrupts import orderly_interrupts, raise_interrupt


def test_a_wait_is_ended_once_and_what_tidies_up_may_wait() -> None:
    raise_interrupt()
    with orderly_interrupts() as check:
        raise_interrupt()
        os.kill(os.getpid(), signal.SIGINT)
        other = threading.Thread(target=raise_interrupt)
        other.start()
        other.join()
        with pytest.raises(KeyboardInterrupt):
            raise_interrupt()
        raise_interrupt()
        with pytest.raises(KeyboardInterrupt):
            check()
    raise_interrupt()
