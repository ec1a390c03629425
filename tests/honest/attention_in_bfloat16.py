"""Both products take the dtype of the inputs: weights are rounded to it before they meet the values, as every tensor-core kernel does.

Odd: for bf16 inputs the weights of the softmax keep eight bits. Right: so do the values they are multiplied with; the maximum, the exponentials and
their sum are float32, and float32 inputs are multiplied as float32.
"""

import math

import torch


def attention(q, k, v, causal=True, window=None):
    T, D = q.shape[2:]
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    distance = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
    hidden = (distance < 0) & causal
    if window is not None:
        hidden = hidden | (distance.abs() >= window)
    scores = (q @ k.mT).float() / math.sqrt(D)
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return weights.to(v.dtype) @ v
