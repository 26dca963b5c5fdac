"""The FUSE mount over the backing: the loop, the handlers, and what the kernel leaves to us of
permissions."""
