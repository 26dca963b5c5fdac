"""The operating system as this program uses it: labelled storage calls and files, file handles,
mounts, ACLs, processes."""
