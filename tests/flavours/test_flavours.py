"""The operators' tests on the CPU library under sanitizers, and on matrix units in plain C++."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from flavours import build

MATRIX_UNITS = ("ranksim", "rank_n_contrast", "contrast")


def preloaded(name: str) -> str:
    command = [*build.graph.compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run_tests(flavour: str, families: Sequence[str] = build.OPERATORS, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", *build.pytest_arguments(build.build(flavour), families)]
    few = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "DADL_EXAMPLES": "10"}
    environment = os.environ | few | environment
    done = subprocess.run(command, env=environment, cwd=build.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert " passed" in done.stdout


@pytest.mark.slow
def test_memory_and_undefined_behaviour() -> None:
    # libstdc++ too, or the sanitizer finds no exceptions to intercept; leaks are those of the interpreter.
    libraries = f"{preloaded('libasan.so')} {preloaded('libstdc++.so')}"
    run_tests("address", LD_PRELOAD=libraries, ASAN_OPTIONS="detect_leaks=0:detect_odr_violation=0")


@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="plain code needs AVX2")
def test_matrix_units_in_plain_code() -> None:
    run_tests("tiles", MATRIX_UNITS)


RACE = "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); print(library.dadl_race())"
THREAD_OPTIONS = "halt_on_error=1:ignore_noninstrumented_modules=1:report_signal_unsafe=0"


@pytest.mark.slow
def test_threads() -> None:
    environment = {"LD_PRELOAD": preloaded("libtsan.so"), "TSAN_OPTIONS": THREAD_OPTIONS}
    library = build.build("thread") / "dadl_ext" / "_C.so"
    code = f"import torch; {RACE}"
    seen = subprocess.run(
        [sys.executable, "-c", code, str(library)], env=os.environ | environment, capture_output=True, text=True
    )
    assert "data race" in seen.stderr, seen.stdout + seen.stderr  # that of the positive control
    run_tests("thread", **environment)
