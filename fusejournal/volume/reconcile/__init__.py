"""Making the backing what the journal says after the loss of a machine."""
