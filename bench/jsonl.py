"""Figures that are kept line by line, each as soon as it is known: whatever ends the program leaves the lines before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of JSON in a file; none where there is no file. A last line that a kill has cut short is deleted from it."""
    text = file.read_bytes() if file.is_file() else b""
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(file, whole)
    return [json.loads(line) for line in text[:whole].splitlines()]
