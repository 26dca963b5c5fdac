"""Trees and files made from the journal: replay, restore, undo, digest."""
