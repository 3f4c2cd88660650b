# make demo   pre-train and fine-tune on a generated world of videos, on a laptop, and write a report
# make test   run the tests
# make test-oldest   run the tests of models, resuming and evaluation with the oldest torch that is supported
# make lint   check style and types
# make bench  measure speed and memory: bench/RESULTS.md
# make gpu    check and measure a GPU: bench/gpu.json, some eight minutes
# make study  compare the MVM targets in miniature: bench/STUDY.md (hours; resumes where it stopped)
# make study-real  the same question on material and teachers that others made: bench/STUDY_REAL.md
# Each first creates .venv if it is missing or the requirements have changed.

PYTHON ?= python3
READY := .venv/.ready

.PHONY: demo test test-oldest lint bench gpu study study-real

demo: $(READY)
	@$(MAKE) --no-print-directory --jobs=$(JOBS) demo-stages || \
	{ echo "make demo stopped: the stage that failed and its log are named above."; exit 1; }
	@$(PY) -m demo.run --data $(DATA) --output $(RUN) --seed $(SEED)

include demo/demo.mk

test: $(READY)
	.venv/bin/python -m pytest

OLDEST := torch==2.6.0 torchvision==0.21.0
MODELS := tests/test_parity.py tests/test_model.py tests/test_video_swin.py tests/test_masking.py
MODELS += tests/engine/test_resume.py tests/tasks/test_qa.py tests/tasks/test_retrieval.py
MODELS += tests/tasks/test_serving.py

test-oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest $(MODELS)
	.venv-oldest/bin/python -m pytest tests/engine/test_parallel.py -k whole_graphs

# of 6 GB
.venv-oldest/.ready: requirements.txt
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	grep --invert-match '^torch' requirements.txt | .venv-oldest/bin/python -m pip install --quiet \
		--requirement /dev/stdin $(OLDEST) pytest==9.2.0 DALL-E==0.1 attrs==26.1.0
	touch $@

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

REAL := _data/study-real
study-real: $(READY)
	.venv/bin/python -m pip install --quiet -r requirements-study.txt
	.venv/bin/python -m study.doom --output $(REAL)/doom
	.venv/bin/python -m study.material --output $(REAL)
	.venv/bin/python -m study.networks --data $(REAL)
	.venv/bin/python -m study.real --data $(REAL) $(if $(QUICK),--quick)

$(READY): requirements.txt requirements-dev.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@
