"""The durability mode of a volume: what a change waits for before its caller is answered.

One object that volume and layer read at each change and that the node alone sets, because the mode
may follow whether the volume is exported. Belongs to the event loop."""

from typing import Literal

DurabilityMode = Literal["async", "nfs", "strict"]


class WaitPolicy:
    """The mode that holds now. ``names_wait``: changes of names and attributes are answered when
    they are durable; ``writes_wait``: writes are, too; ``is_strict``: every entry is made durable
    before it is applied."""

    def __init__(self, mode: DurabilityMode = "async") -> None:
        self.set(mode)

    def set(self, mode: DurabilityMode) -> None:
        """Let *mode* hold from the next change on."""
        self.mode: DurabilityMode = mode
        self.names_wait = mode != "async"
        self.writes_wait = self.is_strict = mode == "strict"
