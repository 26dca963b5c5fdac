"""``python -m fusejournal``."""

from fusejournal.cli.main import main

main()
