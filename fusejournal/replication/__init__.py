"""Shipping the journal to mirrors, and applying it there."""
