# The two commands of the README, `make demo` and `make test`; each sets up what is missing first (scripts/setup.sh).
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint clean

OUT ?= runs/alanine_dipeptide
PYTEST_ARGS ?=

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1 \t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

setup: ## install what is missing: GROMACS >= 2025 and .venv
	@bash scripts/setup.sh

demo: setup ## run the whole cycle on alanine dipeptide (about 4 minutes; run again, it resumes)
	@.venv/bin/ccg run workflows/alanine_dipeptide.yaml --out "$(OUT)"
	@echo "report: $(OUT)/report.html"

test: setup ## run the tests (PYTEST_ARGS="-k energy" for some)
	@.venv/bin/python -m pytest $(PYTEST_ARGS)

lint: ## ruff and mypy
	@bash scripts/setup.sh --dev
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

clean: ## remove what set-up and tests made in this tree; runs/ stays
	@rm -rf .venv .ccg_setup* build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find ccg_gmx tests -name __pycache__ -type d -prune -exec rm -rf {} +
