# make demo      set up everything and run the demo          make test    set up everything and run every test
# The rest: install, lint, format, types, bench, wheel, mutate-barriers, gpu-check, clean.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The one place that pins torch. Where the CUDA build is wanted, this is what brings it.
TORCH := torch==2.13.0
SOURCES := setup.py pyproject.toml $(shell find csrc -type f -not -name '*.pyc')
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test install lint format types bench wheel mutate-barriers gpu-check clean

demo: $(VENV)/.train
	$(BIN)/dadl demo

# A process for each core, whose threads wait asleep: they share the cores.
test: $(VENV)/.dev
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest --numprocesses auto --dist worksteal

install: $(VENV)/.train

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip "setuptools>=77" wheel
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.train: $(VENV)/.torch $(SOURCES)
	$(PIP) --no-build-isolation --editable ".[train]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	$(PIP) --no-build-isolation --editable ".[dev]"
	touch $@ $(VENV)/.train

CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/dadl bench all --output benchmarks/results

wheel: $(VENV)/.torch
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

# Without each of the CUDA kernels' barriers in turn the simulator's tests must fail.
mutate-barriers: $(VENV)/.dev
	$(BIN)/python tools/mutate_barriers.py

# On a machine with a GPU, its own torch (>= 2.11), nvcc and the packages of dadl[test]; nothing is downloaded. Builds
# for this GPU in place, runs the tests on it, then the kernels under compute-sanitizer, then the benchmarks.
gpu-check: export PYTHONPATH := .:python
gpu-check:
	DADL_CUDA=1 TORCH_CUDA_ARCH_LIST=$$($(PYTHON) -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())") \
	  $(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -c "import dadl_ext, pprint; pprint.pprint(dadl_ext.build_info())"
	$(PYTHON) -m pytest tests/test_ranking.py tests/test_ranksim.py tests/test_contrast.py tests/test_disagreement.py
	for tool in memcheck racecheck initcheck synccheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(PYTHON) -m pytest -k "cuda and (equals_reference or published_formulas or matches_the_reference) and not compile" \
	    tests/test_ranking.py tests/test_ranksim.py tests/test_contrast.py tests/test_disagreement.py || exit 1; \
	done
	$(PYTHON) -m dadl bench all --output benchmarks/results

clean:
	rm -rf build dist $(VENV) dadl_ext/_C* *.egg-info python/*.egg-info
