"""The kernel's NFS server: what is exported to whom, and what it holds of a mount."""
