"""`python -m openblip`, which torchrun starts."""

import sys

from openblip.cli import main

if __name__ == "__main__":
    sys.exit(main())
