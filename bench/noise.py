"""The noise of val_bpb: what trials that differ in seed alone show, and how well that is known.

Two trials of the baseline give one degree of freedom, so the estimate carries its degrees and every test is a t-test. Runs of one seed on one tree
are no substitute: with the same order of summation they can agree to the last bit, while a candidate differs from its incumbent as another seed does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.interval import Spread

# No trial of this length repeats better, and two that agree by luck prove nothing.
MIN_NOISE_BPB = 2e-4
UNKNOWN = Spread(MIN_NOISE_BPB, 0)


def noise_of(groups: Sequence[Sequence[float]]) -> Spread:
    """One standard deviation of val_bpb, pooled over groups of trials that differ in seed alone."""
    found = Spread.pooled(groups)
    return Spread(max(MIN_NOISE_BPB, found.deviation), found.degrees)


def unselected(trees: Mapping[str, Mapping[int, float]], start: str) -> list[list[float]]:
    """The groups that show the noise: each tree's val_bpb by seed, in the order of the trials.

    A candidate is trained a second time because its first trial looked good. With that trial in the group noise would be overestimated, which
    costs power. So the first seed counts for the start of the campaign alone, which is trained again whatever it shows.
    `trees` are those that stood as incumbent: a dropped candidate that diverges on its third seed would be the noise of all later ones.
    """
    return [list(seeds.values())[0 if tree == start else 1 :] for tree, seeds in trees.items()]
