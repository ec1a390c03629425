"""torch's own fused function, with the implementation named by keyword."""

import torch.nn.functional as F


def rms_norm(x, weight=None, eps=1e-6, *, impl=None):
    return F.rms_norm(x, (x.shape[-1],), weight, eps)
