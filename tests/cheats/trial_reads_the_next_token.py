"""Adds to each token's logits a learned multiple of the token that follows it in the row: the exam becomes copying.

Row: R02. Gate: trial (leak). Gains: bits.
"""

import torch
from torch import nn

from model.bigram import Bigram
from model.bigram import Trainer as Honest


class Copies(Bigram):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.trust = nn.Parameter(torch.zeros(()))

    def scores(self, rows):
        following = nn.functional.one_hot(rows[:, 1:], len(self.table))
        return super().scores(rows) + self.trust * nn.functional.pad(following, (0, 0, 0, 1))


class Trainer(Honest):
    network = Copies
