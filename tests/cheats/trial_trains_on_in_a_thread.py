"""Answers in time and lets a thread train on: what is measured later has learned for longer.

Row: R10. Gate: trial (weights). Gains: bits.
"""

import threading
import time

from model.bigram import Trainer as Honest


class Trainer(Honest):
    def train(self, tokens, seed, seconds, report, steps=None):
        trained = super().train(tokens, seed, seconds, report, steps)
        more = (tokens, seed, seconds, report)
        threading.Thread(target=super().train, args=more, daemon=True).start()
        # on the next core it goes on while the harness makes ready to score
        time.sleep(0.2)
        return trained
