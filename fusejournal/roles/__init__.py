"""The roles of a node."""
