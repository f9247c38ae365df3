# Each target does all of its own set-up in .venv; a stamp file there remembers what is installed.
# Needs Python 3.11 with its venv module, a C++ compiler and make.
PYTHON ?= python3
PINS   := pyproject.toml constraints.txt
NATIVE := setup.py $(wildcard kernels/*.[ch])
PIP    := .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test check soak bench-check bench-page
demo: .venv/runtime.stamp
	.venv/bin/scanside demo --out out/demo

test: .venv/dev.stamp
	.venv/bin/pytest

# Many seeds of every fault, kills, hours of volumes: an hour on two idle cores.
soak: .venv/dev.stamp
	.venv/bin/python benchmarks/soak.py --json benchmarks/results/soak.json

# The gate: no advantage over PyTorch, transformers or diffusers may fall below the stored one by more than
# the noise. For idle cores only.
bench-check: .venv/dev.stamp
	.venv/bin/python benchmarks/peers.py --compare benchmarks/results/peers.json

bench-page: .venv/dev.stamp
	.venv/bin/python benchmarks/page.py

check: .venv/dev.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

.venv/runtime.stamp: $(PINS) $(NATIVE)
	$(PYTHON) -m venv .venv
	@echo "Installing the runtime. llama-cpp-python is compiled from source unless pip still holds its wheel:"
	@echo "about 7 minutes on two cores, in which pip shows little. Nothing hangs."
	$(PIP) -e '.[cpu]'
	@touch $@

.venv/dev.stamp: .venv/runtime.stamp
	@echo "Installing PyTorch, the exporters and the test tools: a large download, once."
	$(PIP) -e '.[cpu,export,realtime,plot,dev]'
	@touch $@
