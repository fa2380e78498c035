# Two commands do everything on a fresh machine: make demo, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What the demo needs, without what tests need: a third of the time.
USABLE := $(VENV)/.usable

.PHONY: demo run test units faults bench bench-peers bench-growth screenshots lint clean

demo: $(USABLE)
	$(BIN)/python examples/demo.py

# The same, and then server and worker stay, with their data, until Ctrl-C.
run: $(USABLE)
	$(BIN)/python examples/demo.py --stay

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile

# Everything that needs neither sockets nor processes: seconds, while you work.
units: $(INSTALLED)
	$(BIN)/python -m pytest -m "not integration"

# What `make test` does in short: FAULT_RUNS runs, a death at every step of one, 10,000
# runs in one worker. FAULT_SEED=... repeats what was drawn.
faults: $(INSTALLED)
	FAULT_RUNS=$(or $(FAULT_RUNS),200) FAULT_STEPS=all FAULT_EXAMPLES=500 \
	FAULT_SOAK_RUNS=10000 FAULT_OUTPUT_MEGABYTES=1000 \
	FAULT_STORM_ORDERS=100000 FAULT_STORM_SECONDS=30 \
	$(BIN)/python -m pytest tests/faults

bench: $(INSTALLED)
	$(BIN)/python benchmarks/core.py

# Beside Celery, RQ, Dramatiq and Huey, in a virtual environment of their own; starts
# Redis and RabbitMQ if they are not up. Seven minutes.
bench-peers: $(INSTALLED)
	$(BIN)/python benchmarks/peers.py

# How costs grow with sizes: plots and exponents. Four minutes.
bench-growth: $(INSTALLED)
	$(BIN)/python benchmarks/growth.py

# The pictures of the dashboard in docs/; needs chromium. `pip install pillow` makes them
# a third as large.
screenshots: $(INSTALLED)
	$(BIN)/python examples/screenshots.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Says what is missing before pip says it in twenty lines.
$(USABLE): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "job_runner_worker needs Python >= 3.11: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "this Python has no venv: apt-get install python3-venv"; exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server]'
	@touch $@

$(INSTALLED): $(USABLE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
