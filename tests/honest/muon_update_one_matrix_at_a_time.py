"""Matrix by matrix, in double precision, with the decay as a factor beside the step.

Odd: a loop in Python over the stack, and 64 bits. Right: matrices have nothing to do with each other; 1 - decay where step and weight have
one sign is weight minus decay times weight there, and a step of zero has either sign.
"""


def muon_update(weight, update, size, lr=0.02, decay=0.0, beta=0.95):
    rows = size.shape[-2:] == (weight.shape[-2], 1)
    every = weight.shape[:-2].numel()
    w64, u64, s64 = (t.double().reshape(every, *t.shape[-2:]) for t in (weight, update, size))
    stepped, sizes = w64.clone(), s64.clone()
    for k in range(every):
        square = u64[k].square().mean(-1 if rows else -2, keepdim=True)
        sizes[k] = beta * s64[k] + (1 - beta) * square
        floor = sizes[k].clamp(min=1e-10)
        longer = square.sum() / (square / floor).sum().clamp(min=1e-10)
        step = lr * longer.sqrt() * u64[k] / floor.sqrt()
        kept = 1 - decay * (step * w64[k] >= 0).double()
        stepped[k] = kept * w64[k] - step
    weight.copy_(stepped.reshape(weight.shape))
    size.copy_(sizes.reshape(size.shape))
