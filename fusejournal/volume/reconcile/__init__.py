"""Making the backing what the journal says after a system crash."""
