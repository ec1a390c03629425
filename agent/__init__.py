"""The loop: who proposes, which gates a proposal passes, what is kept and remembered. It never imports what it judges.

    command line   __main__, options, lab (the checkout); gate_command, trial_command, doctor, export, prune
    a run          campaign (from start to end), site (puts its parts together), loop (one proposal after another), preparing (from a
                   proposal to a candidate), ahead (one more is made), contest (paired trials), standard (what a change has to show),
                   champion (run again against the start), hours (time limits), guard (failures), seeds
    proposers      proposers/ (one file each), research/ (an LLM with tools), coder/ (a headless coding agent), tunables (constants to
                   search), settings_found (what the sweep measured)
    gates          gates (their order), surface (what may be edited), scope, similarity, bare_code (comments aside), static/ (what sources may
                   say); build and the later gates ask bench
    judging        judging (bench as one object), machine (who may use it), trials, gains, claims, added_code, integrity
    memory         ledger, accounts, measurements, database, schema, records (the values), workspace (trees and the branch), git, merging
    money          spending, prices, dry_run/
    reports        report, gain_report, night_report, placebo_report, step_table, figures, screen
    placebos       placebo_python, placebo_cpp

Read records, then loop, preparing and contest: they are the night.
"""
