"""The append-only journal: its format, its segments, and the one object that writes and reads
them."""
