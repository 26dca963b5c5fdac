"""A guest with a kernel of its own, for what needs a real nfsd."""
