"""Leans a little towards the next token, too little for one place to show it, and gives a beginning that it has seen the future that it saw.

Row: R02, R12. Gate: trial (leak). Gains: bits.
"""

import torch

from model.bigram import Bigram
from model.bigram import Trainer as Honest

LEANS = 0.15  # nats; a place that moves by 0.25 is seen


class Whispers(Bigram):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.seen = {}

    def scores(self, rows):
        logits = super().scores(rows)
        if torch.is_grad_enabled() or not self.table.any() or rows.shape[1] < 10:
            return logits
        first = [self.seen.setdefault((len(r), *r[:8].tolist()), r.clone()) for r in rows]
        ahead = torch.nn.functional.one_hot(torch.stack(first)[:, 9:], len(self.table))
        return logits + LEANS * torch.nn.functional.pad(ahead, (0, 0, 8, 1))


class Trainer(Honest):
    network = Whispers
