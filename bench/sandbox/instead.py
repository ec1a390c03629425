"""Confined already, become another program: one that starts Python itself, as compute-sanitizer does, and needs no descriptor of the judge's.

python -m bench.sandbox.confine TERMS sandbox.instead PROGRAM ARGUMENTS...
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
