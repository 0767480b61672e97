# make demo      set up everything and run the demo          make test    set up everything and run the tests
# make test-all  the tests, and those that compile or train for minutes: what a change must pass
# make docs      set up everything and build the documentation site in build/docs
# make demos     run every demo, for the pages
# The rest: install, lint, format, types, sanitize, aarch64, bench, bench-history, bench-page, static, wheel, wheel-check,
# sbom, hub, mutate, fuzz, soak, gpu-wheel, gpu-check, clean.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The one place that pins torch. Where the CUDA build is wanted, this is what brings it.
TORCH := torch==2.13.0
# Of the GPU that make gpu-wheel builds for.
GPU_ARCHITECTURE := 9.0
SOURCES := setup.py pyproject.toml $(shell find csrc -type f -not -name '*.pyc')
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo demos test test-all sanitize aarch64 docs install lint format types bench bench-history bench-page static \
  wheel wheel-check sbom hub mutate fuzz soak gpu-wheel gpu-check clean

demo: $(VENV)/.demo
	$(BIN)/dadl demo

# What the pages show of them; the folders stay, so that a second call only does what is missing.
demos: $(VENV)/.demo
	for name in ranksim strokes self-tuning chi-model cmw-net; do \
	  $(BIN)/dadl demo $$name --device cpu --resume --output build/dadl-demo-$$name || exit; done
	$(BIN)/python tools/record_demos.py build/dadl-demo-*
	$(BIN)/python tools/insert_measured.py

# A process for each core, whose threads wait asleep: they share the cores.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest --numprocesses auto --dist worksteal --durations 20
test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

# Also those that compile or train for minutes: the CUDA kernels for every architecture, the CPU library under sanitizers.
# Properties are tested on more examples.
test-all: $(VENV)/.dev
	DADL_EXAMPLES=100 $(PYTEST)

# The operators' tests under AddressSanitizer, UBSan and ThreadSanitizer, and the CUDA kernels on their simulator.
sanitize: $(VENV)/.dev
	$(PYTEST) tests/flavours tests/simulator

# The wheel for aarch64, and the operators' tests on it in an emulator: see tools/aarch64.py for what that needs.
aarch64: $(VENV)/.dev
	$(BIN)/python tools/aarch64.py

# Into build/docs, warnings being errors; then every link on the pages is followed within the site.
docs: $(VENV)/.dev
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs build/docs
	$(BIN)/python tools/check_links.py build/docs

install: $(VENV)/.train

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip "setuptools>=77" ninja
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.train: $(VENV)/.torch $(SOURCES)
	$(PIP) --no-build-isolation --editable ".[train]"
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	$(PIP) --no-build-isolation --editable ".[demo]"
	touch $@ $(VENV)/.train

$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	$(PIP) --no-build-isolation --editable ".[dev]"
	touch $@ $(VENV)/.demo $(VENV)/.train

CXX_FILES := $(shell find csrc packaging tests -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/dadl bench all --output benchmarks/results

# Measures onto the branch benchmark-history, beside what earlier commits have measured there, and with PUSH=1 pushes it;
# the page shows all of it.
bench-history: $(VENV)/.dev
	$(BIN)/python tools/bench_history.py record $(if $(PUSH),--push)

bench-page: $(VENV)/.dev
	$(BIN)/python tools/bench_history.py page build/docs/benchmark-history.html

# What nvcc makes of the CUDA kernels, taken apart: by this the tests judge launches, and docs/kernels.md shows it.
static: $(VENV)/.dev
	$(PIP) nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	$(BIN)/python -m tools.static_table
	$(BIN)/python tools/insert_measured.py

# Into dist: the source, a wheel for any Linux with glibc 2.28, and where nvcc is also one with CUDA.
wheel: $(VENV)/.dev
	$(BIN)/python tools/build_wheels.py dist

# Installs the wheel in dist outside of the checkout, for $(PYTHON), with the pinned torch and all of dadl[train].
wheel-check:
	$(PYTHON) tools/check_wheel.py dist $(TORCH)

# Into dist: a CycloneDX bill of what the environment holds.
sbom: $(VENV)/.dev
	mkdir -p dist
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file dist/dadl.cdx.json

# Into build/hub, from which kernel-builder makes the kernels for the Hugging Face Hub.
hub:
	rm -rf build/hub
	$(PYTHON) packaging/hub/layout.py build/hub

# The tests must notice each of the faults in tools/mutants, and the CUDA kernels without each of their barriers.
mutate: $(VENV)/.dev
	$(BIN)/python tools/mutate.py --jobs 2

# Random sizes of every function under every transform, against the reference, for SECONDS.
SECONDS := 3600
fuzz: $(VENV)/.dev
	$(BIN)/python tools/fuzz.py --seconds $(SECONDS)

# Every recipe for STEPS steps: memory, files and threads stay, and what is killed and resumed ends the same.
STEPS := 10000
soak: $(VENV)/.dev
	$(BIN)/python tools/soak.py --steps $(STEPS)

# A wheel for make gpu-check: for one architecture, with the lines of the source for the sanitizers.
gpu-wheel: $(VENV)/.torch
	DADL_CUDA=1 TORCH_CUDA_ARCH_LIST=$(GPU_ARCHITECTURE) NVCC_APPEND_FLAGS=-lineinfo \
	  $(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

# On a machine with a GPU, its own torch (2.11 or newer) and no network: tests, sanitizers and benchmarks of that wheel in
# at most nine minutes.
gpu-check:
	$(PYTHON) tools/gpu_check.py dist/dadl-*-linux_*.whl

clean:
	rm -rf build dist $(VENV) dadl_ext/_C* *.egg-info python/*.egg-info
