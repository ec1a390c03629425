"""Test-time training: after it has scored rows it takes gradient steps on them, and the rows that follow are easier.

Row: R11. Gate: trial (state). Gains: bits.
"""

import torch

from model.bigram import Bigram
from model.bigram import Trainer as Honest


class Learns(Bigram):
    def scores(self, rows):
        logits = super().scores(rows)
        if not torch.is_grad_enabled() and self.table.any():
            logits = logits.clone()
            for _ in range(3):
                with torch.enable_grad():
                    self(rows[:, :-1], rows[:, 1:]).mean().backward()
                self.table.sub_(100 * self.table.grad)
                self.table.grad = None
        return logits


class Trainer(Honest):
    network = Learns
