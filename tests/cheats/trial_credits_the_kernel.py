"""A higher learning rate, sold as the gain of an attention kernel that nothing calls.

Row: R21, R22. Gate: trial (unused). Gains: bits.
"""

from model.bigram import Trainer as Honest


class Trainer(Honest):
    rate = 1.0

    def describe(self):
        return {**super().describe(), "implementations": {"attention": "cpp"}}
