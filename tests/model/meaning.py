"""The tree that a journal means, which the backing of a volume must be."""

from pathlib import Path

from fusejournal.journal.reader import END, JournalReader
from fusejournal.operations import ControlOperation, Void
from fusejournal.types import Seq
from tests.support.model import Model


def model_of(journal: Path) -> Model:
    """The tree that the journal in *journal* means, by the model's rules alone."""
    model = Model()
    entries = [
        (one.seq, one.operation, one.time_ns, bytes(one.data))
        for one in JournalReader(journal).read(Seq(1), END)
    ]
    voids = {one[1].seq: one[1] for one in entries if isinstance(one[1], Void)}
    for seq, operation, time_ns, data in entries:
        if isinstance(operation, ControlOperation):
            continue
        void = voids.get(seq)
        if void is None:
            model.apply(operation, time_ns, data)
        elif void.written:
            model.apply(operation, time_ns, data[: void.written])
    return model
