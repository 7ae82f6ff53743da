# `make help` lists what there is. .venv/bin/python runs everything.
PY := .venv/bin/python
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help env data demo test test-slow coverage lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

env:  ## make or update .venv (PYTHON=... chooses the interpreter)
	@bash tools/setup_env.sh

data: env  ## make the digits set in data/
	@$(PY) -m tools.data.make_digits

demo: data  ## quantize the shipped RetinaNet to 8 bits and evaluate it
	$(PY) tools/ptq.py configs/digits/retinanet_digits.py \
	    demo/checkpoints/retinanet_digits.pth \
	    --recipe uniform --bits w8a8 --work-dir work_dirs/demo

test: data  ## run the default tests
	@$(TEST)

test-slow: data  ## run the tests that take minutes
	@$(TEST) -m slow

coverage: data  ## say which lines the default tests miss (TESTS=... for some)
	@$(PY) -m coverage erase
	@OMP_NUM_THREADS=1 $(PY) -m coverage run -m pytest -n 2 $(TESTS); \
	    status=$$?; $(PY) -m coverage combine -q && \
	    $(PY) -m coverage report && exit $$status

lint: env  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: env  ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove build output and caches (keeps .venv, data, work_dirs)
	rm -rf build dist *.egg-info htmlcov .coverage* \
	    .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find mmdet_ptq configs tools tests -name __pycache__ -prune \
	    -exec rm -rf {} +
