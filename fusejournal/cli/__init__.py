"""The command line: one file a command. Says what happened in one line; ``--json`` for scripts."""
