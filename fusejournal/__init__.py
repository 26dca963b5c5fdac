"""fusejournal: a journaled FUSE layer beneath an NFS-exported directory.

``ARCHITECTURE.md`` is the map: rooms and modules, what may import what, and the ways of a write, a
received batch, a restore and a start.
"""
