"""The last module that a fork server imports (forked.py): what is loaded by now is no matter for
its children's collections of garbage, which would write to each object, and so copy all memory."""

import gc

gc.collect()
gc.freeze()
