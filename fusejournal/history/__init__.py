"""Questions to a journal: its entries by path, time and user, and what a file was at a seq."""
