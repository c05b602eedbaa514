PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo demo-classes test lint comfy comfy-test clean distclean
help:
	@echo 'make demo                train PixNerd on captioned handwritten digits on this machine, draw prompts, score what follows them'
	@echo 'make demo-classes        the same without text: train on handwritten digits, draw each of them'
	@echo 'make test                run the tests'
	@echo 'make lint                ruff, mypy and the layers of imports'
	@echo 'make comfy COMFYUI=DIR   link this checkout into a ComfyUI'
	@echo "make comfy-test HOSTS='PYTHON:DIR ...'   run the tests that need a ComfyUI on each of these"
	@echo 'make clean               remove caches and build products; distclean removes $(VENV) too'

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV), once; this takes some minutes.'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@# Its torchvision is not needed, and may not fit torch.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt torch-fidelity
	@touch $@

# --resume: an interrupted demo goes on where it stopped.
demo: $(STAMP)
	@$(BIN)/python tools/demo_t2i.py prepare
	@$(BIN)/python tools/train.py mm_configs/pixnerd_t2i_digits.py --work-dir work_dirs/t2i_digits --resume
	@$(BIN)/python tools/demo_t2i.py draw

demo-classes: $(STAMP)
	@$(BIN)/python tools/train.py mm_configs/pixnerd_digits.py --work-dir work_dirs/digits --resume
	@$(BIN)/python tools/demo_digits.py

test: $(STAMP)
	@$(BIN)/python tests/run.py

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

comfy:
	@test -d '$(COMFYUI)/custom_nodes' || { echo 'make comfy COMFYUI=DIR: no custom_nodes in "$(COMFYUI)"; DIR is the folder with ComfyUI'"'"'s main.py' >&2; exit 1; }
	@ln -sfn '$(CURDIR)' '$(COMFYUI)/custom_nodes/pixnerd'
	@echo 'Linked as $(COMFYUI)/custom_nodes/pixnerd; restart ComfyUI.'

# Each ComfyUI by the Python that has its requirements, pytest and playwright.
comfy-test:
	@test -n "$(HOSTS)" || { echo "make comfy-test HOSTS='PYTHON:DIR ...': each a Python and the folder with ComfyUI's main.py" >&2; exit 1; }
	@failed=; for host in $(HOSTS); do \
	    echo "$$host"; \
	    COMFYUI_PATH="$${host#*:}" OMP_NUM_THREADS=1 "$${host%%:*}" -m pytest -q tests/comfy_host || failed=1; \
	done; test -z "$$failed"

clean:
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)
