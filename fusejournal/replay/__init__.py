"""What one gets out of the journal: replay, restore, undo, digest."""
