# Everything runs from .venv, which make builds itself from the lock files in requirements/.
# `make` alone prints what there is.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# pip and the test runner use the cores themselves; a venv must not be built twice at once.
.NOTPARALLEL:

# Tests would otherwise be compiled again by each process that runs some of them.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check --quiet
# Hashes make a changed or substituted download fail; --no-deps makes an incomplete lock fail.
INSTALL := $(PIP) install --require-hashes --no-deps
RUN := $(VENV)/.run-installed
DEV := $(VENV)/.dev-installed

# The tool that writes the lock files. Only `make lock` uses it, from a venv of its own.
PIP_TOOLS := pip-tools==7.6.2
LOCK_VENV := .lock

# ----------------------------------------------------------------------------------- running

.PHONY: serve
serve: $(RUN) ## Run the server; NUSKU_* variables and ARGS="--port 9000" are passed through
	@exec $(PYTHON) -m nusku serve $(ARGS)

# ----------------------------------------------------------------------------------- checking

.PHONY: test
test: $(DEV) servers ## Run the whole test suite, or with ARGS="-k claim" what pytest makes of that
ifdef ARGS
	$(PYTHON) -m pytest $(ARGS)
else
	$(PYTHON) -m tests
endif

.PHONY: servers
servers: $(DEV) ## Install PostgreSQL, Redis and PgBouncer for the tests, where they are missing
	@$(PYTHON) -m tests.servers.install

# Of what has many variants two are run; what starts server after server, or plays for long, is left
# out. As each process waits for its server now and then, there is one more than there are cores.
LATER := auth/test_keystone.py clients deterministic/test_s*.py notify security \
    $(addprefix http/test_, events.py flavors.py pools*.py quotas.py rates.py subscription_repair.py tls.py) \
    $(addprefix storage/test_, copying.py migrations.py model*.py) \
    $(addprefix test_, api.py cli.py docs.py forking.py import_zaqar.py leases.py moving.py quotas.py server.py) \
    $(addprefix websocket/test_, doors.py limits.py subscriptions.py)
QUICK := -m "not slow and not chaos and not clients" --store=sqlite --variants=2
.PHONY: quick
quick: $(DEV) ## Run the quick half of the suite, under a minute
	$(PYTHON) -m pytest -q -p no:cacheprovider $(QUICK) $(LATER:%='--ignore-glob=tests/%') \
	    --dist=loadfile --numprocesses=$$(( 1 + $$(getconf _NPROCESSORS_ONLN) )) $(ARGS)

.PHONY: check
check: $(DEV) ## Lint, format, strict types and import contracts
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) -m bandit --quiet --recursive --configfile pyproject.toml src
	@$(MAKE) --no-print-directory audit OFFLINE=pass

# Asks for each locked package whether there is word of a weakness. Where nobody can be asked, `make
# check` goes on without.
.PHONY: audit
audit: $(DEV) ## Ask whether the packages in requirements/ have known weaknesses
	$(PYTHON) -m tests.audit $(if $(OFFLINE),--offline pass)

.PHONY: fuzz
fuzz: $(DEV) ## Fuzz what parses strangers' input, for SECONDS=300 each, or one TARGET
	$(INSTALL) -r requirements/fuzz.txt
	for target in $(or $(TARGET),$(shell $(PYTHON) -c 'from tests.fuzz import targets; print(*(t.name for t in targets.TARGETS))')); do \
	    $(PYTHON) -m tests.fuzz $$target --seconds $(or $(SECONDS),300) $(ARGS) || exit 1; \
	done

.PHONY: format
format: $(DEV) ## Format the code and repair what the linter can repair
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

.PHONY: settings
settings: $(RUN) ## Write docs/settings.md again from src/nusku/config.py
	$(PYTHON) -m nusku.config > docs/settings.md.new
	mv docs/settings.md.new docs/settings.md

# ------------------------------------------------------------------------- measuring, breaking

.PHONY: bench
bench: $(DEV) ## Measure; STORE=URI and SCENARIOS="post1 cycle1" choose where and what
	$(PYTHON) -m benchmarks $(if $(STORE),--store '$(STORE)') $(if $(SCENARIOS),--scenarios '$(SCENARIOS)') $(ARGS)

.PHONY: soak
soak: $(DEV) ## Two hours of a steady load, or SECONDS=600, and what grows: STORE=postgresql
	$(INSTALL) -r requirements/plot.txt
	$(PYTHON) -m benchmarks.soak $(if $(STORE),--store '$(STORE)') $(if $(SECONDS),--seconds '$(SECONDS)') $(ARGS)

# With NEMESIS, PROFILE or SECONDS it is one run. Without, all that a store can be expected to live
# through, which is taken up again where it was left.
CHAOS := $(if $(NEMESIS)$(PROFILE)$(SECONDS),run,tier)
.PHONY: chaos
chaos: $(DEV) ## Break what can break of a STORE, for an hour; or one run: NEMESIS=kill SEED=1 SECONDS=60
	$(PYTHON) -m tests.chaos $(CHAOS) $(if $(STORE),--store '$(STORE)') $(if $(NEMESIS),--nemesis '$(NEMESIS)') $(if $(PROFILE),--profile '$(PROFILE)') $(if $(SEED),--seed '$(SEED)') $(if $(SECONDS),--seconds '$(SECONDS)') $(ARGS)

# ------------------------------------------------------------------------------- dependencies

# The system's python3 comes first: distributions build it with optimisations, version managers
# mostly don't, and then it serves a quarter fewer requests. Version managers also leave commands for
# versions that are not installed, so each candidate is really run, and must be able to make a venv
# that has pip.
$(VENV)/pyvenv.cfg:
	@for python in /usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.14 python; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	    found=$$python; \
	    $$python -c 'import ensurepip, venv' >/dev/null 2>&1 || continue; \
	    echo "Making $(VENV) with $$($$python --version)"; \
	    rm -rf $(VENV); \
	    $$python -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	done; \
	if [ -n "$$found" ]; then \
	    echo "make: $$found cannot make a virtual environment with pip in it." >&2; \
	    echo "make: on Debian and Ubuntu, install its venv package: apt-get install python3-venv" >&2; \
	else \
	    echo "make: no Python 3.11 or newer was found on the PATH." >&2; \
	fi; \
	exit 1

$(RUN): requirements/run.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(INSTALL) -r requirements/run.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements/dev.txt | $(RUN)
	$(INSTALL) -r requirements/dev.txt
	@touch $@

.PHONY: lock
lock: $(VENV)/pyvenv.cfg ## Take the newest releases again and write requirements/*.txt
	$(PYTHON) -m venv --clear $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip --disable-pip-version-check --quiet install '$(PIP_TOOLS)'
	for name in run dev servers keystone fuzz plot; do \
	    env -u PIP_FIND_LINKS CUSTOM_COMPILE_COMMAND='make lock' \
	    $(LOCK_VENV)/bin/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras \
	        --no-annotate --no-header --no-emit-options \
	        --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	        --output-file requirements/$$name.txt requirements/$$name.in || exit 1; \
	done
	rm -rf $(LOCK_VENV)

# ------------------------------------------------------------------------------ housekeeping

.PHONY: clean
clean: ## Remove the venv and everything the tools leave behind (no stores)
	rm -rf $(VENV) $(LOCK_VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.PHONY: help
help: ## Print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
