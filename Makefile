# Every target does all it needs on a fresh machine. PYTHON=python3.12 chooses the interpreter.
SHELL := /bin/sh
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-timm test-oldest test-browser lint format golden slow docs build wheel-test release-check ablations bench bench-inference clean

demo: .venv/.installed-core          ## the whole loop on an embedded world, with a report page
	$(BIN)/openblip demo

test: .venv/.installed-test          ## the default suite (what CI runs)
	$(PYTEST) -n auto --maxprocesses 8 --dist worksteal

test-timm: .venv-timm/.installed     ## timm's models as image encoders, in an environment of its own (5.5 GB)
	.venv-timm/bin/python -m pytest -m timm -rs tests/model/test_timm.py

test-oldest: .venv-oldest/.installed ## the suite with the oldest versions that pyproject.toml allows (7 GB where torch comes with CUDA)
	.venv-oldest/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-browser: .venv/.installed-test  ## examples/browser in Chromium, with two packages of npm
	npm install --prefix examples/browser --no-save onnxruntime-web @huggingface/tokenizers
	$(PYTEST) tests/deploy/test_browser.py -rs

golden: .venv/.installed-test        ## only the comparisons with reference outputs (OPENBLIP_GOLDEN)
	$(PYTEST) tests/golden -rs

slow: .venv/.installed-test          ## the long checks: demo over three seeds, full corpora
	$(PYTEST) -m slow --timeout=7200 -rs

docs: .venv/.installed-docs          ## the site in build/site: refuses broken links and pages that nothing names
	$(BIN)/python scripts/site.py

build: .venv/.installed-build        ## wheel and source archive in dist/, checked as the package index checks them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

wheel-test: build .venv/.installed-test  ## the wheel alone, in an environment of its own: demo, caption, search, studio
	sh scripts/wheel_test.sh dist/*.whl

release-check: build docs .venv/.installed-lint  ## all that a release needs, as a list with yes and no
	$(BIN)/python scripts/release_check.py

ablations: .venv/.installed-core     ## BLIP's ablations on the embedded world, 3 seeds, in about 40 minutes on two idle cores
	$(BIN)/openblip compare benchmarks/ablations.yaml -o ablations --jobs 2

bench: .venv/.installed-core         ## the training step, part by part, beside the naive step
	$(BIN)/python benchmarks/train_step.py --output benchmarks/results/train_step.md

bench-inference: .venv/.installed-test  ## captioning, matching, embedding beside transformers
	$(BIN)/python benchmarks/inference.py --output benchmarks/results/inference.md

lint: .venv/.installed-lint          ## ruff and a strict type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-timm .venv-oldest examples/browser/node_modules build dist .pytest_cache .mypy_cache .ruff_cache

INSTALLED := pyproject.toml constraints.txt scripts/install.sh

.venv/.installed-core: $(INSTALLED)
	sh scripts/install.sh
	@touch $@

# test, lint, build, docs: groups of pyproject.toml
.venv/.installed-%: $(INSTALLED)
	sh scripts/install.sh $*
	@touch $@

# timm imports torchvision, which fits one torch alone.
.venv-timm/.installed: pyproject.toml
	$(or $(PYTHON),python3) -m venv .venv-timm
	.venv-timm/bin/pip install torch==2.14.1 torchvision==0.29.1
	.venv-timm/bin/pip install --upgrade "pip>=25.1"
	.venv-timm/bin/pip install --editable ".[timm]" --group test
	@touch $@

# A bound is what is installed; a newer pip than an old Python's finds the rest in minutes, not in an hour.
.venv-oldest/.installed: pyproject.toml scripts/oldest.py
	$(or $(PYTHON),python3) -m venv .venv-oldest
	.venv-oldest/bin/pip install --upgrade "pip>=25.1"
	.venv-oldest/bin/python scripts/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/pip install --constraint .venv-oldest/constraints.txt --editable . --group test
	@touch $@
