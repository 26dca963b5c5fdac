"""The control socket of a running layer: its server and its client."""
