"""fusejournal: a journaled FUSE layer beneath an NFS-exported directory.

The map, from the bottom up; imports point down only:

- ``config``, ``errors``, ``types``, ``storage``: settings, the error tree, small values, labelled
  storage calls
- ``operations``: what an entry can say
- ``journal``: the format, segments, append, flush, cut; ``reader``, the sidecar ``index``, what it
  can be asked (``lookup``), entries by what is wanted (``criteria``), verify
- ``backing``: handles, the catalog, the tree, and the applier, the only code that changes a tree
- ``wire``: what two nodes say to each other: messages, identity, transport
- ``replay``: replay of chosen operations, restore, undo, digest
- ``volume``: the one ordered place where a change happens; ``recovery``, ``importer``,
  ``durability``, ``opening``
- ``layer``: the FUSE handlers, their loop, permissions, the mount itself
- ``nfsd``, ``exports``: what the kernel's NFS server holds, and what is exported to whom
- ``state``, ``control``, ``asking``: the state directory, the control socket and its client
- ``marks``, ``page``, ``node``: named points, the status page, and one running volume
- ``replication``: shipping the journal to mirrors, and applying it there
- ``cli``: one file a command
"""

__version__ = "0.1.0"
