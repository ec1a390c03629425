"""Normalises over time: the histogram of the row, to its very end, is a learned part of every position's logits.

Row: R02. Gate: trial (leak). Gains: bits.
"""

import torch
from torch import nn

from model.bigram import Bigram
from model.bigram import Trainer as Honest


class Histogram(Bigram):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.weight = nn.Parameter(torch.zeros(()))

    def scores(self, rows):
        counts = nn.functional.one_hot(rows, len(self.table)).sum(1, keepdim=True)
        return super().scores(rows) + self.weight * counts.add(0.1).log()


class Trainer(Honest):
    network = Histogram
