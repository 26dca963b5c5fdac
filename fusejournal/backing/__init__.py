"""The backing directory: handles, the catalog, the tree that joins both, and the one applier that
changes it."""
