"""The tables of the ledger, and the steps that bring a file of an older version to this one."""

from __future__ import annotations

SCHEMA_VERSION = 5

SCHEMA = """
CREATE TABLE runs (
  id TEXT PRIMARY KEY, settings TEXT NOT NULL, base TEXT NOT NULL, start TEXT NOT NULL, incumbent TEXT NOT NULL,
  started REAL NOT NULL, ended REAL
) STRICT;
CREATE TABLE experiments (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs, number INTEGER NOT NULL,
  proposer TEXT NOT NULL, hypothesis TEXT NOT NULL, notes TEXT NOT NULL,
  parent TEXT NOT NULL, commit_hash TEXT NOT NULL, patch TEXT NOT NULL, patch_hash TEXT NOT NULL,
  status TEXT NOT NULL, reason TEXT NOT NULL, started REAL NOT NULL, ended REAL,
  speed REAL, val_bpb REAL, bpb_change REAL, peak_memory_mb REAL, device_seconds REAL NOT NULL DEFAULT 0,
  cost_usd REAL NOT NULL DEFAULT 0, tokens_in INTEGER NOT NULL DEFAULT 0, tokens_out INTEGER NOT NULL DEFAULT 0,
  model TEXT NOT NULL DEFAULT '', expected TEXT NOT NULL DEFAULT '', paths TEXT NOT NULL DEFAULT '[]',
  sketch TEXT NOT NULL DEFAULT '[]',
  UNIQUE (run, number)
) STRICT;
CREATE TABLE gates (
  experiment INTEGER NOT NULL REFERENCES experiments, position INTEGER NOT NULL, name TEXT NOT NULL,
  passed INTEGER NOT NULL, reason TEXT NOT NULL, evidence TEXT NOT NULL, seconds REAL NOT NULL,
  PRIMARY KEY (experiment, position)
) STRICT;
CREATE TABLE trials (
  id INTEGER PRIMARY KEY, run TEXT REFERENCES runs,
  tree TEXT NOT NULL, judge TEXT NOT NULL, machine TEXT NOT NULL, dataset TEXT NOT NULL, device TEXT NOT NULL,
  seconds REAL NOT NULL, seed INTEGER NOT NULL, split TEXT NOT NULL,
  ok INTEGER NOT NULL, val_bpb REAL, tokens_per_second REAL, result TEXT NOT NULL, at REAL NOT NULL
) STRICT;
CREATE INDEX trials_by_key ON trials (tree, dataset, device, seconds, seed);
CREATE TABLE confirmations (
  run TEXT NOT NULL REFERENCES runs, op TEXT NOT NULL, incumbent TEXT NOT NULL,
  ratio REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, at REAL NOT NULL
) STRICT;
"""

# What a model was asked, and for how long a run was worked on: money and time that survive a kill.
_SPENDING = """
CREATE TABLE calls (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs, model TEXT NOT NULL, in_flight INTEGER NOT NULL,
  tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, cache_read INTEGER NOT NULL, cache_write INTEGER NOT NULL,
  usd REAL NOT NULL, at REAL NOT NULL
) STRICT;
CREATE INDEX calls_by_run ON calls (run);
CREATE TABLE stretches (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs, began REAL NOT NULL, until REAL NOT NULL,
  device_seconds REAL NOT NULL
) STRICT;
"""
SCHEMA += _SPENDING

# What stands behind a figure: bounds and numbers of runs, the pairs in which the champion was run again, and which trials are void.
_BEHIND = """
ALTER TABLE experiments ADD COLUMN speed_low REAL;
ALTER TABLE experiments ADD COLUMN speed_high REAL;
ALTER TABLE experiments ADD COLUMN blocks INTEGER;
ALTER TABLE experiments ADD COLUMN bpb_low REAL;
ALTER TABLE experiments ADD COLUMN bpb_high REAL;
ALTER TABLE experiments ADD COLUMN rate REAL;
ALTER TABLE experiments ADD COLUMN rate_low REAL;
ALTER TABLE experiments ADD COLUMN rate_high REAL;
ALTER TABLE experiments ADD COLUMN pairs INTEGER;
ALTER TABLE confirmations ADD COLUMN blocks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trials ADD COLUMN void INTEGER NOT NULL DEFAULT 0;
CREATE TABLE pairs (
  run TEXT NOT NULL REFERENCES runs, incumbent TEXT NOT NULL, keeps INTEGER NOT NULL, seed INTEGER NOT NULL,
  before_bpb REAL NOT NULL, after_bpb REAL NOT NULL, before_rate REAL NOT NULL, after_rate REAL NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (run, incumbent, seed)
) STRICT;
"""
SCHEMA += _BEHIND

# What an experiment was measured on; unknown for those that are older than the column.
_WHERE = """
ALTER TABLE experiments ADD COLUMN hardware TEXT NOT NULL DEFAULT '';
"""
SCHEMA += _WHERE

# Which judge scored a pair (unknown for older ones), and whether the timer called an op faster that was timed again.
_BY_WHOM = """
ALTER TABLE pairs ADD COLUMN judge TEXT NOT NULL DEFAULT '';
ALTER TABLE confirmations ADD COLUMN faster INTEGER NOT NULL DEFAULT 0;
UPDATE confirmations SET faster = high < 1;
"""
SCHEMA += _BY_WHOM

# The step from the version in the key to the next.
STEPS = {
    1: """
ALTER TABLE experiments ADD COLUMN model TEXT NOT NULL DEFAULT '';
ALTER TABLE experiments ADD COLUMN expected TEXT NOT NULL DEFAULT '';
ALTER TABLE experiments ADD COLUMN paths TEXT NOT NULL DEFAULT '[]';
ALTER TABLE experiments ADD COLUMN sketch TEXT NOT NULL DEFAULT '[]';
"""
    + _SPENDING,
    2: _BEHIND,
    3: _WHERE,
    4: _BY_WHOM,
}
