"""The agent: one process a machine, which tells consoles about its volumes and does their work."""
