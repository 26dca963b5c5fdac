"""What is asked of the operating system: labelled storage calls, file handles, mounts, ACLs,
processes."""
