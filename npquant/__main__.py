"""``python -m npquant`` is the command ``npquant``."""

from __future__ import annotations

import sys

from npquant.cli import main

if __name__ == "__main__":
    sys.exit(main())
