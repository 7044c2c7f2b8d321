"""A program that leaves an orphan behind: it prints the orphan's process id, and ends.  See `reaper`.

The orphan keeps no file of its parent open, and ends by itself after ten seconds.  It runs without the package.
"""

import os
import signal
import sys

if __name__ == "__main__":
    orphan = os.fork()
    if orphan:
        sys.stdout.write(f"{orphan}\n")
    else:
        signal.alarm(10)
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        signal.pause()
