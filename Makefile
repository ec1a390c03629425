# make lab       from a fresh clone to a summary of real experiments: 7 to 12 minutes, one of them to install and one to run again what was kept
# make test      formatting, types and the test suite, all of it but `make proof`
# make proof     every cheat gains from a naive judge, every honest oddity passes (about 10 minutes)
# make sanitize  every C++ kernel under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (6 to 16 minutes)
# make bench     every kernel and its peers, measured

PYTHON ?= python3
BIN := .venv/bin
# examples/ holds C++, which a GPU does not run.
DEVICE ?= cpu

.PHONY: lab test suite proof sanitize check lint types bench install

lab: install
	@$(BIN)/python -m agent --target kernels --op linear_cross_entropy --proposer sweep \
	    --start examples --experiments 3 --seconds 5 --device $(DEVICE)

# mypy takes half a minute of one core: beside the tests.
test: lint
	@$(MAKE) --no-print-directory --jobs 2 types suite

# Tests that measure time run alone; all others share the cores, one test per core.
suite: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not alone and not proof"
	$(BIN)/python -m pytest -q -m "alone and not proof" $$(grep -l mark.alone tests/test_*.py)

# No straw men: every cheat gains from a naive judge, every honest oddity passes.
proof: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "proof and not alone"
	$(BIN)/python -m pytest -q -m "proof and alone" tests/test_timed_cheats.py

sanitize: install
	$(BIN)/python tests/sanitize.py

check: lint types

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

bench: install
	$(BIN)/python -m pytest bench --benchmark

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import platform, sys; here = f"{platform.system()} on {platform.machine()}"; sys.exit(0 if here == "Linux on x86_64" else f"Linux on x86_64 is needed, {here} came")'
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {v[0]}.{v[1]} came: make PYTHON=python3.12")'
	@command -v $${CXX:-c++} >/dev/null || { echo "a C++ compiler is needed: install g++ or clang++, or set CXX"; exit 1; }
	@echo "installing into .venv (about a minute) ..."
	@$(PYTHON) -m venv --clear .venv  # else what a killed installation left would count as installed
	@$(BIN)/python -m pip install --quiet --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
