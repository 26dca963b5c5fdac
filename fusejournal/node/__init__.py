"""One running volume: its parts put together, its state directory, status and metrics."""
