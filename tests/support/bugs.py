"""Bugs that the program has found in itself, as its log says."""

import logging


class Bugs(logging.Handler):
    """Keeps what was logged as a bug."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or "bug" in record.getMessage():
            self.found.append(f"{record.getMessage()} {record.exc_info and record.exc_info[1]!r}")
