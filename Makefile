# make demo   a whole import on this machine, checked byte for byte (EXIT=1: end then; S3=1: in S3)
# make run    the service for real use: data under VAR_DIR (var/), port PORT (8000)
# make test   every check and test there is
# make bench  how fast it is, beside its peers (QUICK=1: within a minute; ONLY=import: one scenario)
#
# Each makes .venv first, and again when the pinned requirements change.

.DEFAULT_GOAL := help
.PHONY: help demo run bench test lint format types check pytest image-check system-packages node-packages lock clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# Redis comes in a wheel for CPython up to 3.12. The distribution's Python comes first: one that was
# compiled without optimizations, as pyenv does, takes an eighth more. One without venv makes none.
DISTRIBUTION := /usr/bin
PYTHON ?= $(shell for name in $(DISTRIBUTION)/python3.11 $(DISTRIBUTION)/python3.12 python3.11 python3.12 python3; do \
	$$name -c 'import ensurepip' 2>/dev/null && command -v $$name && break; done)

# Whatever the shell says: else each process of the service compiles all of it when it starts.
unexport PYTHONDONTWRITEBYTECODE

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,4p'

demo: $(VENV)/$(if $(S3),development,runtime)
	@$(BIN)/python -m ingestion_project.demo $(if $(EXIT),--exit) $(if $(S3),--s3)

run: $(VENV)/runtime
	@exec $(BIN)/python -m ingestion_project.run

# The order is that of the quickest answer. mypy would leave all cores but one idle: it runs beside
# pytest, whose summary line comes last.
test: lint check
	@$(MAKE) --no-print-directory --jobs 2 types pytest

lint: $(VENV)/development
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports

format: $(VENV)/development
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

types: $(VENV)/development
	$(BIN)/mypy

# Settings as a deployment has them; neither command asks the database anything.
DEPLOYED = DATABASE_URL=postgres://unused/unused REDIS_URL=redis://unused HTTPS=1 FORBID_PRIVATE_ADDRESSES=1 \
	SECRET_KEY=only-for-this-check-0123456789-abcdefghijklmnopqrstuvwxyz ENCRYPTION_KEYS=only-for-this-check-0123456789-abcdefghijklmnop

check: $(VENV)/development
	$(DEPLOYED) $(BIN)/python manage.py check --deploy --fail-level WARNING
	$(DEPLOYED) $(BIN)/python -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run

# Two cores are busy with four processes: a test waits for others a third of its time. Each takes
# the next test of all (tests/conftest.py has put the long ones first), so that they end together.
pytest: $(VENV)/development $(VENV)/msgraph system-packages node-packages
	$(BIN)/python -m pytest --numprocesses 4 --dist loadscope --no-loadscope-reorder --durations 10 --durations-min 1

# The container's image, built and run: docs/deployment.md. It takes minutes, and is no part of `make test`.
image-check: $(VENV)/development
	@sh tests/deploy/image.sh

system-packages:
	@sh tests/system-packages.sh

bench: $(VENV)/development
	@sh bench/system-packages.sh
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(addprefix --only ,$(ONLY)) $(BENCH)

# Only for tests: a Gmail that nobody here wrote.
node-packages: system-packages
	@sh tests/node-packages.sh

$(VENV)/runtime: requirements.txt
	@$(call environment)
	@$(call install,requirements.txt)
	@$(BIN)/python -m compileall -q connectors ingestion ingestion_project
	@touch $@

# pip would compile all of it, 20 s on one core: half of it is never imported.
$(VENV)/development: requirements-dev.txt
	@$(call environment)
	@$(call install,requirements-dev.txt,--no-compile)
	@touch $@ $(VENV)/runtime

# Microsoft's own client, for one test: its wheels, which are read and never installed.
$(VENV)/msgraph: requirements-msgraph.txt
	@$(call environment)
	@rm -rf $@ && $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps \
		--only-binary=:all: --dest $@ -r $< || { rm -rf $@; exit 1; }
	@touch $@

# What requirements.in names, with all that it needs in turn and the hash of every file: pip takes no
# other. A pin stays as it is until it is changed in the .in file, or its line in the .txt is removed.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock"

lock: $(VENV)/development
	@$(LOCK) requirements.in -o requirements.txt
	@$(LOCK) --constraints requirements.txt requirements-telemetry.in -o requirements-telemetry.txt
	@$(LOCK) requirements-dev.in -o requirements-dev.txt
	@$(LOCK) --no-deps requirements-msgraph.in -o requirements-msgraph.txt

define environment
	test -n "$(PYTHON)" || { echo "There is no Python 3.11 or 3.12 with its venv module: apt-get install python3 python3-venv"; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "Python 3.11 or 3.12 is needed, and $(PYTHON) is none: make PYTHON=/path/to/python3.11 ..."; exit 1; }; \
	test -x $(BIN)/pip || { echo "Making $(VENV) with `$(PYTHON) -V`"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV) 2>/dev/null; } || \
		{ rm -rf $(VENV); echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
endef

# pip's 300 lines as one that moves: its errors come on stderr.
PROGRESS = \
	live && /^Collecting/ { printf "\r  %d of %d packages fetched", ++n, all; fflush() } \
	live && /^Installing collected/ { printf "\r  %d packages fetched; unpacking them ... ", n; fflush() } \
	/^In vain/ { bad = 1 } \
	END { if (live) print ""; exit bad }

define install
	echo "Installing $(1)"; \
	{ { $(BIN)/python -m pip install --disable-pip-version-check --prefer-binary --require-hashes $(2) -r $(1) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation --editable .; \
	} || echo "In vain."; } | awk -v all="$$(grep -c == $(1))" -v live="$$(test -t 2 && echo 1)" '$(PROGRESS)' || \
		{ echo "The packages could not be installed: see above. Without a network there is nothing to install from;" \
		"where a compiler is missing: apt-get install build-essential python3-dev"; exit 1; }
endef

clean:
	rm -rf $(VENV) tests/servers/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
