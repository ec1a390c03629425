"""What a timed call reads and where its results go: new contents each time, the same for all arms, and nothing in them that tells who is looked at."""

from __future__ import annotations

import random

import torch

from bench.arena import Arena
from bench.contracts import Case, Input, contract
from bench.protocol import Mapped
from bench.runner.blocks import Blocks
from bench.runner.calls import Calls
from bench.runner.lending import Lent
from bench.staging import PAGE, Contents, Stage, fill


def test_contents_are_new_before_every_block_and_the_same_in_all_arms() -> None:
    case = contract("linear_cross_entropy").trial["cpu"][0]
    contents = Contents(contract("linear_cross_entropy"), case, random.Random(1))
    arenas = [Arena(), Arena()]
    stages = [Stage(contents, arena) for arena in arenas]
    fill(stages, [0, 1], random.Random(5))
    before = {name: t.clone() for name, t in stages[0].inputs(1)[0].items()}
    for stage in stages:
        stage.change([0, 1], 6)
    inputs, upstream = stages[0].inputs(1)
    twins, twin_upstream = stages[1].inputs(1)
    for name, t in [*inputs.items(), ("upstream", upstream[0])]:
        assert torch.equal(t, twins[name] if name in twins else twin_upstream[0])
    for name, t in inputs.items():
        pages = t.view(torch.uint8).flatten() != before[name].view(torch.uint8).flatten()
        assert bool(pages.view(-1, PAGE).any(1).all()), f"a page of {name} is as it was"
    assert int(inputs["targets"].min()) >= 0
    assert int(inputs["targets"].max()) < case.inputs["targets"].below


def test_input_sets_that_lie_in_other_memory_are_new_and_the_same_in_all_arms() -> None:
    case = contract("linear_cross_entropy").trial["cpu"][0]
    contents = Contents(contract("linear_cross_entropy"), case, random.Random(1))
    stages = [Stage(contents, Arena()) for _ in range(2)]
    fill(stages, [0, 1], random.Random(5))
    for stage in stages:
        stage.poison()
    before = [{name: t.clone() for name, t in stages[0].inputs(i)[0].items()} for i in (0, 1)]
    for stage in stages:
        stage.vacate([1])
    assert not stages[0].inputs(1)[0]["W"].flatten()[PAGE:-PAGE].any()
    assert not stages[0].answer()["dW"].flatten()[PAGE:-PAGE].any()
    for stage in stages:
        stage.refill(1, 6)
    kept, new = (stages[0].inputs(i)[0] for i in (0, 1))
    for name in new:
        assert torch.equal(kept[name], before[0][name])
        assert torch.equal(new[name], stages[1].inputs(1)[0][name])
        assert not torch.equal(new[name], before[1][name])


def test_arms_take_their_memory_by_turns() -> None:
    """Of arms that are filled one after the other the last is faster: memory that is asked for later lies otherwise."""
    filled: list[tuple[str, int]] = []

    class Arm:
        def __init__(self, name: str) -> None:
            self.name = name

        def refill(self, number: int, seed: int) -> None:
            filled.append((self.name, number))

    fill([Arm("a"), Arm("b"), Arm("c")], range(30), random.Random(1))  # type: ignore[list-item]
    turns = [filled[i : i + 3] for i in range(0, 90, 3)]
    assert [{number for _, number in turn} for turn in turns] == [{i} for i in range(30)]
    assert {turn[0][0] for turn in turns} == {"a", "b", "c"}


def test_the_judges_buffers_show_nothing_of_which_call_is_copied_until_the_last_is_made() -> None:
    asked = contract("rms_norm")
    arena = Arena()
    contents = Contents(asked, Case({"x": Input((128, 192))}), random.Random(1))
    stage = Stage(contents, arena)
    fill([stage], range(contents.sets()), random.Random(2))
    stage.poison()
    lent = Lent("cpu")
    lent.memory = Mapped(arena.fd)
    blocks = Blocks(lent, Calls(lent))
    seen: list[bool] = []

    def norm(x: torch.Tensor, **scalars: float) -> torch.Tensor:
        seen.extend(bool(t.isnan().all()) for t in stage.answer().values())
        return x * 2.0

    blocks.calls.functions["rms_norm", "None/eager"] = norm
    blocks.do_stage({"calls": stage.calls})
    request = {"op": "rms_norm", "impl": None, "mode": "eager", "sets": [2, 0, 1, 3], "keep": 1}
    blocks.do_block({**request, "backward": True})
    assert seen == [True] * 8
    inputs, (upstream,) = stage.inputs(0)
    answer = stage.answer()
    assert torch.equal(answer["y"], 2 * inputs["x"])
    assert torch.equal(answer["dx"], 2 * upstream)
