"""The agent: one process a machine, which informs consoles about its volumes and does their
work."""
