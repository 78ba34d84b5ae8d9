"""`python -m nusku.config` prints `docs/settings.md`."""

import sys

from nusku.config import document

if __name__ == "__main__":
    sys.stdout.write(document())
