# make demo   pre-train and fine-tune on a generated world of videos, on a laptop, and write a report
# make test   run the tests
# make lint   check style and types
# make bench  measure speed and memory: bench/RESULTS.md
# make gpu    check and measure a GPU: bench/gpu.json, under eight minutes
# make study  compare the MVM targets in miniature: bench/STUDY.md (hours; resumes where it stopped)
# Each first creates .venv if it is missing or the requirements have changed.

PYTHON ?= python3
READY := .venv/.ready

.PHONY: demo test lint bench gpu study

demo: $(READY)
	@$(MAKE) --no-print-directory --jobs=$(JOBS) demo-stages || \
	{ echo "make demo stopped: the stage that failed and its log are named above."; exit 1; }
	@$(PY) -m demo.run --data $(DATA) --output $(RUN) --seed $(SEED)

include demo/demo.mk

test: $(READY)
	.venv/bin/python -m pytest

lint: $(READY)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

bench: $(READY)
	.venv/bin/python -m bench.results

gpu: $(READY)
	.venv/bin/python -m bench.gpu

study: $(READY)
	.venv/bin/python -m study.run

$(READY): requirements.txt requirements-dev.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@
