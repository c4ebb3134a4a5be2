# Every target but `help` first builds .venv when it is missing, unfinished, moved or out of date. It needs a python3 of
# version 3.11, 3.12 or 3.13 and takes the first that it finds; another one: rm -r .venv && make setup PYTHON=<python>

SHELL := bash
python := .venv/bin/python
install := .venv/bin/uv pip install --python $(python)

# What a shell has set for another project would reach into this one. Addresses of package mirrors stay.
unexport PYTHONPATH PYTHONHOME PYTHONWARNINGS PYTHONOPTIMIZE PYTHONSTARTUP PYTHONUSERBASE VIRTUAL_ENV CONDA_PREFIX
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIREMENT PIP_CONSTRAINT PIP_PYTHON PIP_NO_DEPS PIP_DRY_RUN
unexport UV_PYTHON UV_SYSTEM_PYTHON UV_TARGET UV_PREFIX UV_CONSTRAINT UV_OVERRIDE UV_NO_BINARY UV_EXCLUDE_NEWER
unexport PYTEST_ADDOPTS PYTEST_PLUGINS

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-fast test-faults errors docs bench rebuild

help:
	@echo "skinmtl: what make can do"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 20

setup: .venv/ready  ## build .venv (the others do it too)
	@echo "skinmtl: .venv is ready; go on with: source .venv/bin/activate"

demo: .venv/ready  ## train, evaluate and report on synthetic images
	$(python) train.py experiment=demo

check: .venv/ready  ## lint, format, layers and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	.venv/bin/lint-imports --no-logo --no-cache
	$(python) -m mypy

test: .venv/ready  ## the tests: no network, no GPU, no data
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2

test-fast: .venv/ready  ## the inner loop, within a minute: no test that trains or starts a process, one case of each
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 --fast

test-faults: .venv/ready  ## the long tests that look for faults: hundreds of splits, kills, signals
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 -m "long or fault" --tally outputs/faults.csv

errors: .venv/ready  ## write tests/errors.txt anew: every one-line error, for a look at what changes in it
	$(python) tests/recorded_errors.py
	@git diff --stat -- tests/errors.txt

docs: .venv/ready  ## the documentation, built strictly into site/; read it by: python -m http.server -d site
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict  # not --quiet, which would pass over warnings

bench: .venv/ready  ## loader, step, saves and GPU on real images, which SKINMTL_DATA names; how each is called
	@grep -h -e '^"""[A-Z]' -e '^    python tests/bench/' tests/bench/*.py | tr -d '"'
	@if [ -z "$(SKINMTL_DATA)" ]; then \
	  echo "skinmtl: error: SKINMTL_DATA: not set, so nothing was measured; fix:" \
	    "make bench SKINMTL_DATA=<folder that holds ham10000_native and ham10000_256x192>" >&2; exit 2; \
	fi
	$(python) tests/bench/loader.py --root "$(SKINMTL_DATA)/ham10000_native" --many "$(SKINMTL_DATA)/ham10000_256x192"
	$(python) tests/bench/throughput.py --root "$(SKINMTL_DATA)/ham10000_256x192"
	$(python) tests/bench/methods.py --root "$(SKINMTL_DATA)/ham10000_256x192"
	$(python) tests/bench/survival.py --root "$(SKINMTL_DATA)/ham10000_256x192"
	$(python) tests/bench/gpu_stall.py --root "$(SKINMTL_DATA)/ham10000_256x192"

# ---- .venv. Two stamps: the packages, and last of all the project itself with the place where it stood then ----

ifeq ($(origin PYTHON),command line)
pythons := $(PYTHON)
else
pythons := $(PYTHON) python3 python3.13 python3.12 python3.11 python
endif

# An environment knows its own absolute path, and the Python that it was made with may go: both end in a new one.
ifneq ($(shell $(python) -IS -c 'print(open(".venv/ready").read(), end="")' 2>/dev/null),$(CURDIR))
.venv/packages: rebuild
endif

.venv/packages: requirements.lock
	@found=; fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; \
	for name in $(pythons); do \
	  if "$$name" -c "$$fits" 2>/dev/null; then found=$$name; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  name=$(firstword $(pythons)); version=$$("$$name" -V 2>&1 | head -1); \
	  echo "skinmtl: error: environment: no Python 3.11, 3.12 or 3.13 here ($$name: $$version);" \
	    "fix: install one, or say where it is: make setup PYTHON=<python>" >&2; exit 2; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "skinmtl: error: environment: $$found lacks the modules venv and ensurepip;" \
	    "fix: install them (Debian and Ubuntu: python3-venv), or take another: make setup PYTHON=<python>" >&2; exit 2; \
	fi; \
	echo "skinmtl: building .venv with $$("$$found" -V) ($$found); PyTorch with CUDA takes about 6 GB of disk"; \
	"$$found" -m venv --clear .venv
	@echo "skinmtl: 1 of 3: uv, which installs the rest, and setuptools, which builds what comes as source"
	@set -o pipefail; sed -n -e '/^uv==/,/[^\]$$/p' -e '/^setuptools==/,/[^\]$$/p' requirements.lock \
	  | $(python) -m pip install --quiet --disable-pip-version-check --require-hashes -r /dev/stdin
	@echo "skinmtl: 2 of 3: the packages of requirements.lock, each checked against its hash"
	@set -o pipefail; $(install) --compile-bytecode --require-hashes --no-build-isolation -r requirements.lock 2>&1 | { grep -v -e '^ [+-] ' -e '^ Downloaded' || true; }
	@touch $@

.venv/ready: .venv/packages pyproject.toml
	@echo "skinmtl: 3 of 3: skinmtl itself, as it lies here"
	@$(install) --quiet --no-deps --no-build-isolation -e .
	@printf %s "$(CURDIR)" > $@
