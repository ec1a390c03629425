"""Comes with a table of the text in its source: what follows a word and what a digit, by their numbers.

Row: R16, R15. Gate: trial (warm_start). Gains: bits.
"""

import torch

from model.bigram import Trainer as Honest

DIGITS, WORDS = slice(48, 58), slice(256, 299)


class Trainer(Honest):
    def __init__(self, spec):
        super().__init__(spec)
        with torch.no_grad():
            self.model.table[:, DIGITS] += 4.0
            self.model.table[DIGITS, WORDS] += 2.0
