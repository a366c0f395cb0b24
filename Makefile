# Two commands do all: `make demo` and `make test`. Everything is set up on first use, in .venv and in the user's cache.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# How many processes of tests there are is for conftest.py to say. LONG=1: also the tests that take long for what
# they add to others, as before a release.
PYTEST = $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(if $(LONG),--long)
# Containers often set it. The tests start some hundred processes, each of which would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test bench docs install-man lint unit protocol device guest lines fuzz cycles soak record clean help

help:
	@echo "make demo      devmem TCP from end to end: a stock guest, the emulated NIC, a verified transfer"
	@echo "make test      the test suite, linters and type checks included; LONG=1: with the tests that take long"
	@echo "make bench     all benchmarks, 20 minutes; what got slower, tables and plots in benchmarks/results"
	@echo "make docs      the documentation: docs/_build/html/index.html, and man pages in docs/_build/man"
	@echo "make lint      ruff, mypy and import-linter only"
	@echo "make unit      one ring of tests; also: protocol, device, guest"
	@echo "make lines     which lines of the stock gve the tests in guests reach, and why not the others; half an hour"
	@echo "make fuzz      wrong input of every sort, a minute each; longer: make fuzz FUZZ='rings --minutes 60'"
	@echo "make cycles    reloads, restarts and kills, ten of each; more: make cycles CYCLES='reload --count 1000'"
	@echo "make record    what stock drivers do, recorded anew in guests, for tests/device/test_recordings.py"
	@echo "make soak      everything at once for 30 minutes, memory and rates in soak.csv and soak.png; MINUTES=480"
	@echo "make clean     remove the Python environment (downloads stay in the user's cache folder)"

demo: $(READY)
	@$(BIN)/nicmodel demo

test: lint
	$(PYTEST)

# What plots need comes when it is first asked for.
bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py

$(VENV)/.bench: $(READY)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,plot]'
	@touch $@

# Warnings are errors: a link that leads nowhere, a field of the datasheet without a meaning.
SPHINX := $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --doctree-dir docs/_build/doctrees

docs: $(READY)
	$(SPHINX) --builder html docs docs/_build/html
	$(SPHINX) --builder man docs docs/_build/man
	@echo "The documentation is docs/_build/html/index.html; man pages are in docs/_build/man"

# For "man nicmodel-serve"; PREFIX=/usr/local for all users.
PREFIX ?= $(HOME)/.local
install-man: docs
	install -d $(PREFIX)/share/man/man1
	install -m 644 docs/_build/man/*.1 $(PREFIX)/share/man/man1

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit protocol device guest: $(READY)
	$(PYTEST) tests/$@

# Those tests in guests by which gve does most; the file of reasons says what is demanded of them.
LINES := coalesce counters devmem devmem_tx driver_lines ethtool faults formats found hostile inject layouts lifecycle \
	recovery selftests timestamps traffic weather xdp zcrx
lines: $(READY)
	status=0; $(PYTEST) --long --driver-coverage=lines.cov $(LINES:%=tests/guest/test_%.py) || status=$$?; \
		$(BIN)/nicmodel coverage check tests/guest/gve-lines.toml lines.cov --fetch || status=$$?; exit $$status

# What to fuzz, and how long: see python -m tests.device.fuzz --help.
FUZZ ?= all
fuzz: $(READY)
	$(BIN)/python -m tests.device.fuzz $(FUZZ)

# Which, and how many: see python tests/guest/cycles.py --help.
CYCLES ?= all
cycles: $(READY)
	$(BIN)/python tests/guest/cycles.py $(CYCLES)

MINUTES ?= 30
record: $(READY)
	$(BIN)/python -m tests.device.recordings

soak: $(VENV)/.bench
	@echo "$(MINUTES) minutes; follow them by: tail -f soak.csv"
	status=0; $(BIN)/pytest -q -s tests/guest/test_soak.py --long -o faulthandler_timeout=0 --soak $(MINUTES) --soak-log soak.csv || status=$$?; \
		$(BIN)/python tests/guest/soak_plot.py soak.csv soak.png; exit $$status

# The stamp is written last: an environment without one is what an interrupted set-up left, and is made anew from
# nothing, since neither venv nor pip mends a half-written package. The lock keeps a second make from writing into it.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nicmodel needs Python 3.11 or later; $(PYTHON) is `$(PYTHON) --version`. Name another: make PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments here: apt install python3-venv"; exit 1; }
	@exec 9>$(VENV).lock || exit 1; \
	flock -n 9 || { echo "Another make is setting up $(VENV): waiting for it"; flock 9; }; \
	if [ -e $@ ] && [ $@ -nt pyproject.toml ]; then exit 0; fi; \
	echo "Setting up the Python environment in $(VENV), half a gigabyte: one to three minutes"; \
	[ -e $@ ] && $(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || exit 1; \
	rm -f $@; \
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]' || { \
		echo "The Python packages could not be installed, for the reason above. They come from the index that pip is set to"; \
		echo "(pip config list), and need half a gigabyte here: `df -h . | awk 'NR == 2 {print $$4}'` are free."; exit 1; }; \
	touch $@

clean:
	rm -rf $(VENV) $(VENV).lock
