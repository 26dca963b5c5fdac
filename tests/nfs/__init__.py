"""In the guest: a volume under a real nfsd, and its clients."""
