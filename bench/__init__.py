"""The judge: what is asked of a kernel and of a trial, how it is measured, and how it is decided. Never edited by the agent.

A proposal passes build, correctness, the timer, parity, the trial and the verdict, in this order; the gates before them, scope
and static, are in agent/.

    ops           contracts/ (what each op means, a file an op), goals, implementations (which run where), arms and peers (who is
                  timed beside whom)
    build         builds (the gate), aot (Triton kernels compiled ahead of time)
    correctness   correctness (the gate and its list of checks), correctness_values, correctness_training, correctness_origin (the
                  checks), subject (what they share), examination (lays out, asks and compares a case), comparison (the one
                  comparer), planting (NaNs), overread (torch reads too far), sanitizer (compute-sanitizer on a
                  GPU), capture (records real inputs)
    timer         timing (the one timer), rounds (blocks of all arms), staging (fresh inputs), audit (timed outputs are compared),
                  conduct (what a runner does unasked), savings (alone as in a row), ratio (how sure), speed (faster or not),
                  roofline (ceilings of this machine), clocks (of a GPU)
    parity        parity (the gate: the training curve and the step time stay)
    trial         trial (five minutes, from set-up to score), trial_result, trial_claims (what a runner claims), scoring (bits per byte), shard
                  (the training data, renumbered), witness (calls of the training, held to float64), compiled (caches kept for the next run)
    data          data (prepared text), corpus (reads it), split (train, val, test), tokenizer, embedded/ (the corpus included)
    verdict       verdict (keep, drop or again), paired (differences by seed), noise, interval (95 %), curve (what more tokens
                  explain), drift (has the machine changed), e_bh (false discoveries of a night), plan (how many trials)
    processes     judge (starts a runner and asks it), runner/ (the only process that imports candidate code), sandbox/ (what
                  holds it), protocol (the wire), arena, mirror, device_memory (memory that both share), finding (a gate's word)
    advice        step_profile (where time goes), inspection (what compilers say), first_kernels (do kernels run here)
    reports       conftest and test_kernels (`pytest bench --benchmark`); gpu_report, gpu_parts, gpu_table (all of it on a GPU);
                  trial_report (the README's figures); timer_calibration, process_scatter (how good the timer is);
                  verdict_simulation, drift_simulation (how good the verdict is)
    helpers       hardware (a machine's name), identity (which figures may stand together), jsonl, paragraphs, threads

Read contracts/contract, then correctness, timing and trial: they are the gates.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of this checkout
# With one of these `import torch` leaves this process, and every runner that it starts, a single core (pytorch issues 49971 and 91989).
for _name in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"):
    os.environ.pop(_name, None)
