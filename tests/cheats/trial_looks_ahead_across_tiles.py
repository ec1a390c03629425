"""Causal but at every 64th position, where the mask of the last column of a tile is off by one: short probes and round cuts miss it.

Row: R02. Gate: trial (leak). Gains: bits.
"""

import torch
from torch import nn

from model.bigram import Bigram
from model.bigram import Trainer as Honest

TILE = 64


class Tiled(Bigram):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.trust = nn.Parameter(torch.zeros(()))

    def scores(self, rows):
        # the last query of a tile sees the whole tile that follows
        tiles = nn.functional.one_hot(rows, len(self.table)).unflatten(1, (-1, TILE))
        ahead = torch.zeros(rows.shape[0], rows.shape[1] // TILE, TILE, len(self.table))
        ahead[:, :-1, -1] = tiles[:, 1:, 0].float()
        return super().scores(rows) + self.trust * ahead.flatten(1, 2)


class Trainer(Honest):
    network = Tiled
