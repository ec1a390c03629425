"""What a whole night of keeps is worth: of a hundred proposals without effect, each tested at 1 %, one is kept.

e-BH (Wang and Ramdas 2022): of m proposals, the k keeps of the largest e-values stand at false-discovery rate q if each of them
reaches m / (q k). It holds however the e-values depend on each other, and they do: all candidates of an incumbent meet the same trials of it.
"""

from __future__ import annotations

from collections.abc import Sequence

FALSE_DISCOVERY = 0.10


def rates(e_values: Sequence[float]) -> list[float]:
    """For each proposal of a night, dropped ones included, the lowest false-discovery rate at which it stands; 1 if at none."""
    order = sorted(range(len(e_values)), key=lambda i: -e_values[i])
    found = [1.0] * len(e_values)
    least = 1.0
    for rank in range(len(order), 0, -1):
        e = e_values[order[rank - 1]]
        least = min(least, len(order) / (rank * e) if e > 0 else 1.0)
        found[order[rank - 1]] = least
    return found
