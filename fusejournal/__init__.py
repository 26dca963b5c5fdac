"""fusejournal: a journaled FUSE layer beneath an NFS-exported directory.

The map, from the bottom up; imports point down only, and rooms of one line do not import each
other:

- ``errors``, ``types``, ``address``, ``config``, ``operations``: the words that all rooms use
- ``disk``: what is asked of the operating system
- ``control``: the control socket of a running layer
- ``journal``: the format, segments, append, flush, cut, read, verify
- ``backing``: the catalog, the tree, and the applier, the only code that changes a tree;
  ``history``: questions to a journal; ``wire``: what two nodes say to each other
- ``volume``: the one ordered place where a change happens, its start, recovery and durability;
  ``replay``: replay of chosen operations, restore, undo, digest
- ``layer``: the FUSE handlers, their loop, the mount's connection; ``nfs``: exports and what the
  kernel's NFS server holds; ``replication``: shipping the journal to mirrors, and applying it there
- ``node``: one running volume, its state directory, status and metrics
- ``admin``: what can be asked for, as data: for the command line, agents and pages
- ``cli``: one file a command: options, one call, print
"""
