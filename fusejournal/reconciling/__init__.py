"""After the loss of a machine: makes the backing equal to the journal, by fid."""
