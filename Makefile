# Two commands are all a newcomer types: `make quickstart` and `make test`. Everything else is set up by them.
PY := .venv/bin/python
# more processes than cores, of one thread each: half of the tests wait for servers, timeouts and other processes
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 --dist worksteal
FAST := $(PYTEST) -m "not slow"
SETUP := .venv/.ready
# containers like to set it; without bytecode every process that a command starts is seconds slower
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test check docs wheel coverage simd clean
quickstart: $(SETUP)   ## build shards from the offline images, train, kill, resume, evaluate (CPU, a few minutes)
	$(PY) tools/quickstart.py

test: $(SETUP)         ## every test, slow ones too
	$(PYTEST)

check: $(SETUP)        ## format, lint, types, fast tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright
	$(FAST)

docs: $(SETUP)         ## the documentation as HTML: docs/_build/html/index.html
	.venv/bin/uv pip install -q --python $(PY) -c constraints.txt --group docs
	$(PY) tools/document_config.py
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html

wheel: $(SETUP)        ## sdist and wheel in dist/, tried in two empty environments
	rm -rf build dist
	.venv/bin/uv build -q
	$(PY) tools/try_wheel.py

coverage: $(SETUP)     ## the lines that no test reaches
	OMP_NUM_THREADS=1 $(PY) -m coverage erase
	OMP_NUM_THREADS=1 $(PY) -m coverage run -m pytest -n 3 --dist worksteal
	$(PY) -m coverage combine -q
	$(PY) -m coverage report

simd: $(SETUP)         ## Pillow-SIMD from source in place of Pillow (needs libjpeg and zlib headers)
	.venv/bin/uv pip uninstall -q --python $(PY) pillow
	.venv/bin/uv pip install --python $(PY) --no-binary pillow-simd pillow-simd

$(SETUP): pyproject.toml constraints.txt $(wildcard hjepa_shards/*/*.[ch])
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install -q "uv>=0.9"
	.venv/bin/uv pip install -q --python $(PY) -c constraints.txt -e ".[train]" --group dev
	touch $@

clean:                 ## what was built here; data/ and runs/ stay
	rm -rf .venv build dist docs/_build *.egg-info .pytest_cache .ruff_cache .hypothesis
