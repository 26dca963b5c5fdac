"""Decides who may be primary."""
