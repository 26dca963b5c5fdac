"""Counts of what was shipped to one peer since the node began.

Used from the event loop's thread."""

from dataclasses import dataclass


@dataclass
class Traffic:
    """Counts."""

    batches: int = 0
    entries: int = 0
    content_bytes: int = 0
    """The size of entries, before compression."""
    sent_bytes: int = 0
    """The size of entries, after compression."""
    resent_entries: int = 0
    errors: int = 0
    sessions: int = 0

    def begun(self, resent_entries: int) -> None:
        """A session begins, in which so many entries are sent again."""
        self.sessions += 1
        self.resent_entries += resent_entries

    def failed(self) -> None:
        """An attempt has failed."""
        self.errors += 1

    def sent(self, entries: int, content_bytes: int, sent_bytes: int) -> None:
        """A batch was sent."""
        self.batches += 1
        self.entries += entries
        self.content_bytes += content_bytes
        self.sent_bytes += sent_bytes
