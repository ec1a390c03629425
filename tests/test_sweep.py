"""The sweep finds the best setting of the marked constants, remembers across runs, and proposes nothing twice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lab_tree import CPP, FILES, past, write

from agent import settings_found, tunables
from agent.lab import Unusable
from agent.proposers import Context, choose, names, sweep
from agent.records import (
    CRASH,
    DROP,
    KEEP,
    LOST,
    REFUSE,
    UNFINISHED,
    Outcome,
    Past,
    Proposal,
    Settings,
)

TWO = "constexpr int kRows = 1;  // tune: 1 2 4 8 16\nconstexpr int kCols = 16;  // tune: 16 32 64 128\n"


@dataclass
class Night:
    """Plays the loop for a proposer: every proposal is timed, the faster one is kept."""

    root: Path
    run: str = "r1"
    target: str = "kernels"
    device: str = "cpu"
    brought: tuple[str, ...] = ()
    hardware: str = "Zen 5, AVX512, 2 threads"
    history: list[Past] = field(default_factory=list)

    def context(self) -> Context:
        return Context(
            self.run, "incumbent", self.root, self.target, None, self.device, 0,
            tuple(self.history), brought=self.brought, hardware=self.hardware,
        )  # fmt: skip

    def propose(self) -> Proposal | None:
        return sweep.Sweep().propose(self.context())

    def end(self, proposal: Proposal, outcome: Outcome) -> None:
        number = len(self.history) + 1
        self.history.append(
            past(
                number, run=self.run, proposer="sweep", hypothesis=proposal.hypothesis, paths=tuple(proposal.files),
                notes=proposal.notes, outcome=outcome, hardware=self.hardware,
            )
        )  # fmt: skip
        if outcome.status == KEEP:
            write(
                self.root, {path: text for path, text in proposal.files.items() if text is not None}
            )

    def sleep(self, seconds: Mapping[str, Mapping[str, float]], experiments: int) -> None:
        """Go through so many experiments; the time is the product of `seconds[name][value]`."""
        for _ in range(experiments):
            proposal = self.propose()
            if proposal is None:
                return

            def cost(values: Mapping[str, str]) -> float:
                return math.prod(seconds[name][value] for name, value in values.items())

            ratio = cost(proposal.notes["values"]) / cost(proposal.notes["from"])
            self.end(proposal, Outcome(KEEP if ratio < 1 else DROP, "", speed=ratio))


SECONDS = {
    "kRows": {"1": 2.0, "2": 1.5, "4": 1.0, "8": 1.1, "16": 1.6},
    "kCols": {"16": 1.8, "32": 1.3, "64": 1.0, "128": 1.4},
}


@pytest.fixture
def night(tmp_path: Path) -> Night:
    write(tmp_path, {"csrc/scale.cpp": TWO})
    return Night(tmp_path)


def setting(root: Path, path: str = "csrc/scale.cpp") -> dict[str, str]:
    return {each.name: each.value for each in tunables.find((root / path).read_text())}


def test_the_best_of_twenty_settings_is_found_in_twelve_experiments(night: Night) -> None:
    night.sleep(SECONDS, 12)
    best = setting(night.root)
    assert SECONDS["kRows"][best["kRows"]] * SECONDS["kCols"][best["kCols"]] <= 1.1


def test_every_setting_is_proposed_once_and_then_nothing(night: Night) -> None:
    night.sleep(SECONDS, 100)
    proposed = [tuple(e.notes["values"].items()) for e in night.history]
    assert len(proposed) == len(set(proposed)) == 19
    assert setting(night.root) == {"kRows": "4", "kCols": "64"}
    assert night.propose() is None


def test_another_run_begins_with_what_the_last_one_found(night: Night) -> None:
    night.sleep(SECONDS, 100)
    write(night.root, {"csrc/scale.cpp": TWO})
    night.run = "r2"
    proposal = night.propose()
    assert proposal is not None
    assert proposal.notes["values"] == {"kRows": "4", "kCols": "64"}
    assert "earlier run" in proposal.hypothesis


def test_on_other_hardware_what_was_found_is_offered_once_and_has_to_win_there(
    night: Night,
) -> None:
    night.sleep(SECONDS, 100)
    write(night.root, {"csrc/scale.cpp": TWO})
    night.run, night.hardware = "r2", "Zen 2, AVX2, 16 threads"
    offer = night.propose()
    assert offer is not None
    assert offer.notes["values"] == {"kRows": "4", "kCols": "64"}
    assert "the best on Zen 5, AVX512, 2 threads, not measured here" in offer.hypothesis
    night.end(offer, Outcome(DROP, "slower", speed=1.5))
    night.run = "r3"
    (space,) = sweep.spaces(night.context())
    here = settings_found.by_hardware(space, night.history)[night.hardware]
    assert here == pytest.approx({("1", "16"): 0.0, ("4", "64"): math.log(1.5)})
    proposal = night.propose()
    assert proposal is not None
    assert "a new setting" in proposal.hypothesis
    night.run, night.hardware = "r4", "Zen 5, AVX512, 2 threads"
    again = night.propose()
    assert again is not None
    assert again.notes["values"] == offer.notes["values"]
    assert "the best setting that an earlier run measured" in again.hypothesis


def test_found_settings_are_told_by_hardware_for_the_files_as_they_stand(night: Night) -> None:
    night.sleep(SECONDS, 100)
    night.hardware = ""  # of a ledger that did not record it
    notes = night.history[0].notes | {"values": {"kRows": "2", "kCols": "16"}}
    night.end(Proposal("", {}, "sweep", notes=notes), Outcome(DROP, "", speed=0.75))
    write(night.root, {"csrc/scale.cpp": TWO})
    assert [*settings_found.report(night.root, night.history)][1:] == [
        " Zen 5, AVX512, 2 threads",
        "  csrc/scale.cpp: kRows 1 -> 4, kCols 16 -> 64, 0.278x time against its incumbent (unknown blocks); 20 settings measured",
        " hardware that was not recorded",
        "  csrc/scale.cpp: kRows 1 -> 2, 0.750x time against its incumbent (unknown blocks); 2 settings measured",
    ]
    write(night.root, {"csrc/scale.cpp": TWO + "int other;\n"})
    assert [*settings_found.report(night.root, night.history)] == []


def test_memory_does_not_cross_to_a_file_with_other_code(night: Night) -> None:
    night.sleep(SECONDS, 100)
    write(night.root, {"csrc/scale.cpp": TWO + "int other;\n"})
    night.run = "r2"
    proposal = night.propose()
    assert proposal is not None
    assert "a new setting" in proposal.hypothesis


def test_settings_that_never_met_are_ordered_through_the_incumbents_between_them(
    night: Night,
) -> None:
    for before, after, ratio in (("1", "2", 0.75), ("2", "4", 0.8), ("1", "16", 0.9)):
        text = tunables.rewrite(TWO, {"kRows": after})
        notes = {
            "path": "csrc/scale.cpp", "template": tunables.template(TWO),
            "from": {"kRows": before, "kCols": "16"}, "values": {"kRows": after, "kCols": "16"},
        }  # fmt: skip
        night.end(
            Proposal("", {"csrc/scale.cpp": text}, "sweep", notes=notes),
            Outcome(DROP, "", speed=ratio),
        )
    (space,) = sweep.spaces(night.context())
    scores = {
        values[0]: score for values, score in settings_found.chain(space, night.history).items()
    }
    assert scores == pytest.approx(
        {"1": 0.0, "2": math.log(0.75), "4": math.log(0.6), "16": math.log(0.9)}
    )


def test_a_setting_that_does_not_build_counts_as_slow_and_a_lost_one_not_at_all(
    night: Night,
) -> None:
    first = night.propose()
    assert first is not None
    night.end(first, Outcome(LOST, "killed"))
    again = night.propose()
    assert again is not None
    assert again.notes["values"] == first.notes["values"]
    night.end(again, Outcome(REFUSE, "build: error"))
    (space,) = sweep.spaces(night.context())
    assert (
        settings_found.chain(space, night.history[1:])[tuple(again.notes["values"].values())]
        == settings_found.FAILED
    )


def test_a_setting_that_tripped_the_judge_is_not_tried_again_and_nothing_is_known_of_it(
    night: Night,
) -> None:
    first = night.propose()
    assert first is not None
    night.end(first, Outcome(CRASH, f"{UNFINISHED}: ValueError"))
    again = night.propose()
    assert again is not None
    assert again.notes["values"] != first.notes["values"]
    (space,) = sweep.spaces(night.context())
    assert settings_found.chain(space, night.history) == {}


def test_a_proposal_changes_its_constants_alone(night: Night) -> None:
    proposal = night.propose()
    assert proposal is not None
    (text,) = proposal.files.values()
    assert text is not None
    assert tunables.template(text) == tunables.template(TWO)
    assert all(f"{name} = {value};" in text for name, value in proposal.notes["values"].items())
    assert proposal.hypothesis.startswith("csrc/scale.cpp: k")


def test_files_take_turns_and_those_that_the_person_brought_come_first(tmp_path: Path) -> None:
    write(tmp_path, {"csrc/a.cpp": TWO, "csrc/b.cpp": TWO, "csrc/z.cpp": TWO})
    night = Night(tmp_path, brought=("csrc/z.cpp",))
    night.sleep(SECONDS, sweep.HEAD_START + 4)
    order = [e.notes["path"] for e in night.history]
    assert order[: sweep.HEAD_START] == ["csrc/z.cpp"] * sweep.HEAD_START
    assert sorted(order[sweep.HEAD_START :][:3]) == ["csrc/a.cpp", "csrc/b.cpp", "csrc/z.cpp"]


def test_only_constants_that_the_device_runs_are_searched(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "csrc/scale.cpp": TWO,
            "kernels/scale.py": "ROWS = 4  # tune: 4 8\n",
            "csrc/scale.cu": TWO,
        },
    )
    assert [space.path for space in sweep.spaces(Night(tmp_path).context())] == ["csrc/scale.cpp"]
    on_gpu = [space.path for space in sweep.spaces(Night(tmp_path, device="cuda").context())]
    assert on_gpu == ["kernels/scale.py", "csrc/scale.cu"]


def test_a_constant_is_searched_on_the_device_and_hardware_that_it_is_marked_for(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        {
            "model/gpt.py": "S = dict(depth=4)\n    depth=4,  # tune on cpu: 3 4\n    depth=9,  # tune on cuda: 8 9 10\n",
            "csrc/scale.cpp": "kRows = 8;  // tune on avx512: 4 8\nkRows = 4;  // tune on avx2: 2 4\n",
        },
    )

    def searched(**night: Any) -> list[str]:
        found = sweep.spaces(Night(tmp_path, target="all", **night).context())
        return [each.name for space in found for each in space.tunables]

    assert searched() == ["kRows on avx512", "depth on cpu"]
    assert searched(hardware="Zen 2, AVX2, 8 threads") == ["kRows on avx2", "depth on cpu"]
    assert searched(device="cuda", hardware="NVIDIA H100 80GB HBM3") == ["depth on cuda"]
    night = Night(tmp_path, target="model", device="cuda", hardware="NVIDIA H100 80GB HBM3")
    proposal = night.propose()
    assert proposal is not None
    assert "depth=4,  # tune on cpu" in str(proposal.files["model/gpt.py"])
    night.end(proposal, Outcome(DROP, "", val_bpb=1.0, bpb_change=-0.01, pairs=2))
    said = [*settings_found.report(tmp_path, night.history)]
    assert said[1] == " NVIDIA H100 80GB HBM3"
    assert "depth on cuda 9 -> " in said[2]


def test_the_target_decides_which_files_are_searched(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    assert [s.path for s in sweep.spaces(Night(tmp_path, target="model").context())] == [
        "model/optim.py"
    ]
    found = [s.path for s in sweep.spaces(Night(tmp_path, target="all").context())]
    assert found == ["csrc/scale.cpp", "model/optim.py"]
    assert CPP == (tmp_path / "csrc/scale.cpp").read_text()


def test_a_model_s_settings_are_ordered_by_bpb(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    night = Night(tmp_path, target="model")
    first = night.propose()
    assert first is not None
    night.end(first, Outcome(DROP, "", val_bpb=2.1, bpb_change=0.05))
    (space,) = sweep.spaces(night.context())
    assert settings_found.chain(space, night.history) == {
        ("0.04",): 0.0,
        tuple(first.notes["values"].values()): 0.05,
    }


def test_auto_takes_what_is_configured_and_says_why() -> None:
    keys = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "o"}
    for settings, environment, name in (
        (Settings(), keys, "anthropic"),
        (Settings(), {"OPENAI_API_KEY": "o"}, "openai"),
        (Settings(base_url="http://localhost:1/v1"), keys, "openai"),
        (Settings(command="coder {prompt}"), keys, "command"),
        (Settings(recording="night.jsonl"), keys, "replay"),
        (Settings(), {}, "sweep"),
        (Settings(proposer="sweep"), keys, "sweep"),
    ):
        chosen, why = choose(settings, environment)
        assert chosen == name
        assert why
        assert not any(key in why.split() for key in keys.values())
    assert "sweep" in names()
    with pytest.raises(Unusable, match="expected one of auto, .*sweep"):
        choose(Settings(proposer="oracle"), {})
    with pytest.raises(Unusable, match="--model m: whom to ask"):
        choose(Settings(models=("m",)), {})


def test_a_value_outside_its_choices_leaves_all_of_them_to_be_tried(tmp_path: Path) -> None:
    write(tmp_path, {"csrc/scale.cpp": "constexpr int kRows = 3;  // tune: 2 4 8\n"})
    night = Night(tmp_path)
    night.sleep({"kRows": {"3": 2.0, "2": 1.9, "4": 1.8, "8": 1.7}}, 10)
    assert {e.notes["values"]["kRows"] for e in night.history} == {"2", "4", "8"}


def test_a_file_that_is_no_utf_8_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    (tmp_path / "csrc/old.h").write_bytes(b"// 5 \xb5s\n")
    found = [space.path for space in settings_found.spaces(tmp_path)]
    assert found == ["csrc/scale.cpp", "model/optim.py"]


def test_choices_may_be_none_and_texts(tmp_path: Path) -> None:
    write(tmp_path, {"model/gpt.py": 'MODE = None  # tune: None "max-autotune"\n'})
    proposal = Night(tmp_path, target="model").propose()
    assert proposal is not None
    assert proposal.notes["values"] == {"MODE": '"max-autotune"'}
