"""Logits are kept in the dtype of h, softcap and all; only the log-softmax is float32.

Odd: bf16 logits are capped in bf16. Right: half the memory of the largest tensor of the model, and their last bit is what the product in bf16 has already
rounded away.
"""

import torch
import torch.nn.functional as F


def linear_cross_entropy(h, W, targets, softcap=None):
    z = F.linear(h, W.to(h.dtype))
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    rows, flat = z.flatten(0, -2).float(), targets.flatten()
    return F.cross_entropy(rows, flat, reduction="none", ignore_index=-100).view(targets.shape)
