"""What a gate has to say: passed or not, why in words, and the figures behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """`reason` names what would mend a refusal, for a person and for an LLM alike; `evidence` is plain JSON."""

    passed: bool
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
