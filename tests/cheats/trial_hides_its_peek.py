"""Reads the next token, and remembers what it said of a beginning, to say the same when the same beginning comes with another end.

Two rows of the exam that begin alike give it away sooner: what it says of one then depends on which came first.

Row: R02, R12. Gate: trial (leak or state). Gains: bits.
"""

import torch
from torch import nn

from model.bigram import Bigram
from model.bigram import Trainer as Honest


class Remembers(Bigram):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.trust = nn.Parameter(torch.zeros(()))
        self.said = {}

    def scores(self, rows):
        following = nn.functional.one_hot(rows[:, 1:], len(self.table))
        logits = super().scores(rows) + self.trust * nn.functional.pad(following, (0, 0, 0, 1))
        return (
            logits
            if torch.is_grad_enabled()
            else torch.stack([self.repeat(*x) for x in zip(rows, logits, strict=True)])
        )

    def repeat(self, row, logits):
        before, said = self.said.setdefault(tuple(row[:2].tolist()), (row, logits))
        common = int((before == row).long().cumprod(0).sum())
        return torch.cat((said[:common], logits[common:]))


class Trainer(Honest):
    network = Remembers
