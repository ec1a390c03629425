"""Whatever this op is compared with runs slower: in the same process by a profiler's hook, in another one beside a thread that spins.

Row: T17, P22. Gate: microbench (background).
Gains: time forward.
"""

import sys
import threading
import time

import torch

_ours = False


def hook(frame, event, argument):
    if not _ours and event == "c_call" and argument.__name__ == "mean":
        sum(range(2_000_000))


def spin():
    while True:
        if _ours:
            time.sleep(1e-3)
        else:
            sum(range(1000))


sys.setswitchinterval(1e-4)  # else each answer waits for the spinning thread, and the test with it
sys.setprofile(hook)
threading.Thread(target=spin, daemon=True).start()


def rms_norm(x, weight=None, eps=1e-6):
    global _ours
    _ours = True
    xf = x.float()
    y = xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)
    y = (y if weight is None else y * weight.float()).to(x.dtype)
    _ours = False
    return y
