"""Objects: named bytes that are made once, never changed, and removed; where versions are kept."""
