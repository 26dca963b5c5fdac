"""The holder's process (connection_holder.py) by its name of 0.1.0.

A layer of that release whose volume is not exported starts it when it is asked to restart: by then
this program is installed in its place. No layer of today runs it."""

import sys

from fusejournal.layer.connection_holder import keep

if __name__ == "__main__":
    keep(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
