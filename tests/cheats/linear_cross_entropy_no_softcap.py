"""The cap hardly bends the small logits of a fresh model, so it is left out.

Row: N03, N02. Gate: correctness. Gains: time forward.
"""

import torch.nn.functional as F


def linear_cross_entropy(h, W, targets, softcap=None):
    z = (h @ W.to(h.dtype).T).float()
    loss = F.cross_entropy(z.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=-100)
    return loss.view(targets.shape)
