# Every target sets up what it needs in .venv; a second call finds it there and starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# onnxruntime and onnxruntime-gpu are two builds of one import package: the machine decides which one is installed.
EXTRA := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
RUNTIME_cpu := onnxruntime
RUNTIME_gpu := onnxruntime-gpu
OTHER := $(if $(filter gpu,$(EXTRA)),cpu,gpu)
INSTALLED := $(VENV)/installed-$(EXTRA)
RUN ?= quickstart

.PHONY: help quickstart test test-fast test-ray lint types contract docs format clean
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if test -e $(VENV)/installed-$(OTHER); then $(BIN)/python -m pip uninstall --yes $(RUNTIME_$(OTHER)); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRA),dev]'
	rm -f $(VENV)/installed-$(OTHER)
	touch $@

quickstart: $(INSTALLED) ## search on generated images, then detect with the winner; the result is in ./quickstart
	$(BIN)/smnas-search --preset nano --device local --strategy sm-nas --trials 10,10 --epochs 3 --final-epochs 9 --top 1 --out $(RUN)
	$(BIN)/smnas-detect --model $(RUN) --out $(RUN)/images --quiet $$(ls $(RUN)/data/val/* | head -n 4)
	@echo
	@echo "ranking    $(RUN)/ranking.csv"
	@echo "report     $(RUN)/report.html   (open it in a browser)"
	@echo "images     $(RUN)/images        (what the recommended detector found)"

test: $(INSTALLED) ## the test suite, but for Ray's tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-fast: $(INSTALLED) ## the tests that take less than about two seconds each
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

# Ray is 250 MB and may want other versions of what the project uses, so it has an environment of its own: Ray (as in
# the extra, without its dashboard) and what comes with it, in front of .venv's packages.
.venv-ray/installed: $(INSTALLED) pyproject.toml
	$(PYTHON) -m venv --clear --without-pip .venv-ray
	site=$$(.venv-ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > $$site/venv.pth
	$(BIN)/python -m pip --quiet --disable-pip-version-check --python .venv-ray/bin/python install \
		'ray>=2.40,<3'
	touch $@

test-ray: .venv-ray/installed ## the tests of a Ray cluster, in .venv-ray
	.venv-ray/bin/python -m pytest --numprocesses 0 tests/smnas/search/test_ray.py

lint: $(INSTALLED) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

contract: $(INSTALLED) ## who may import whom
	$(BIN)/lint-imports

docs: $(INSTALLED) ## the documentation as a site in ./site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(INSTALLED) ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, caches and the quickstart's result
	rm -rf $(VENV) .venv-ray quickstart site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
