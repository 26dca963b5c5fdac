"""Versions: kept images of the tree, each made of the one before it and the entries between."""
