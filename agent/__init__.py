"""The loop: who proposes, what gates a proposal passes, what is kept and remembered. It never imports what it judges.

    command line   __main__, options, lab; gate_command, trial_command, doctor, export, prune
    a run          campaign (from end to end), site (its parts), loop, preparing, pipeline, contest, standard, champion, hours
    proposers      proposers/ (one file each), research/ (an LLM with tools), coder/ (a headless coding agent), tunables, settings_found
    gates          gates (their order), scope, similarity, static/ (what sources may say); build and later ones ask bench
    what judges    judging (bench as one object), machine (who may use it), trials, gains, claims, integrity
    memory         ledger, accounts, measurements, database, schema, records (the values), workspace (trees and the branch), git, merging
    money          spending, prices, dry_run/
    reports        report, gain_report, night_report, placebo_report, step_table, figures, screen
    placebos       placebo_python, placebo_cpp

Read records, then loop, preparing and contest: they are the night.
"""
