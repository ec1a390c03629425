"""Whether time that calls save in a row is also saved by a call that is asked alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.contracts import Case
from bench.judge import Refused

# A call that is asked alone has to save at least this share of what a call in a row saves. Honest ones save as much or more, and least where
# threads have to be woken first, some 50 us.
ALONE_SHARE = 0.25
# As a share of the incumbent's time: smaller savings drown in the noise of single calls.
WORTH_ASKING = 0.1
BOOTSTRAP = 2000

Samples = Mapping[str, Sequence[float]]
Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Savings:
    """Seconds that a call of the candidate saves: in a row of calls, and when it is asked alone (with bounds).

    A runner that leaves work out where nobody will look, or does the work of many calls in one, saves nothing in a call that is asked
    alone and whose results are copied out. The request costs both arms the same, so it cancels in a difference.
    """

    incumbent: float
    row: float
    alone: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Samples, alone: Samples) -> Savings:
        incumbent, candidate = (statistics.median(row[n]) for n in ("incumbent", "candidate"))
        saved = np.subtract(alone["incumbent"], alone["candidate"])
        low, high = np.quantile(_medians(saved), (0.005, 0.995))
        return cls(
            incumbent, incumbent - candidate, float(np.median(saved)), float(low), float(high)
        )

    @property
    def claimed(self) -> bool:
        return self.row > WORTH_ASKING * self.incumbent

    @property
    def unclear(self) -> bool:
        return self.claimed and self.low < ALONE_SHARE * self.row < self.high

    def check(self, case: Case) -> None:
        """Raises Refused where calls are cheap only in a row; of kind noise where that may also be chance."""
        if not self.claimed or self.alone >= ALONE_SHARE * self.row:
            return
        measured = (
            f"a call in a row of calls saves {1e6 * self.row:.0f} us, and one asked alone {1e6 * self.alone:.0f} us "
            f"[{1e6 * self.low:.0f}, {1e6 * self.high:.0f}] ({case.label()})"
        )
        if self.unclear:
            raise Refused("noise", f"{measured}: run it again when this machine does nothing else")
        raise Refused(
            "phase",
            f"{measured}: some calls leave work out, or have it done by others; if yours do not, "
            "run it again when this machine does nothing else",
        )


def _medians(x: Numbers) -> Numbers:
    """Medians of bootstrap resamples."""
    drawn = np.random.default_rng(0).integers(0, len(x), (BOOTSTRAP, len(x)))
    found: Numbers = np.median(x[drawn], axis=1)
    return found
