# Everything from a fresh clone: `make demo` trains and shows, `make test` checks. Only python3 and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/demo

export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

PAPER ?= all
STUDIED := from tessera.papers import papers; print(*(p.slug for p in papers() if p.built and p.lights['claim'] != 'n/a'))

.PHONY: help install demo test lint lights prove docs clean

help:
	@echo "make demo     train VL-GPT here and write $(OUT)/report.html; run again to continue"
	@echo "make test     the tests (minutes)"
	@echo "make lint     style, types, import floors, sizes"
	@echo "make lights   run the tests that put on lights of papers, write results/lights.json (PAPER=vl-gpt: of one)"
	@echo "make prove    the slow tests, the lights and the studies"
	@echo "make docs     rewrite the generated parts of README.md and docs/"
	@echo "make install  the virtual environment $(VENV), at the versions of constraints.txt"
	@echo "make clean    remove caches and builds; $(VENV) and runs/ stay"

install: $(STAMP)

# A CUDA build of torch that the user already has is kept; otherwise pip takes the pinned one.
$(STAMP): pyproject.toml constraints.txt tools/install.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" bash tools/install.sh
	@touch $@

demo: install
	$(BIN)/tessera train vl-gpt --out $(OUT) --resume

test: install
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tools.check_floors
	$(BIN)/python -m tools.check_sizes
	$(BIN)/mypy

lights: install
	$(BIN)/python -m pytest -m light --lights $(PAPER) --timeout 7200

prove: install lights
	$(BIN)/python -m pytest -m slow --timeout 7200
	for slug in $$($(BIN)/python -c "$(STUDIED)"); do $(BIN)/tessera reproduce $$slug || exit; done

docs: install
	$(BIN)/python -m tools.pages
	$(BIN)/python -m tools.readme
	$(BIN)/python -m tools.performance

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
