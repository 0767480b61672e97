"""The simulator itself: what it must find, and the other files' tests under it as sanitizer and race detector."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from simulator.helpers import FLAVOUR, run_process

VALUES = {size: np.arange(size, dtype=np.float32) for size in (32, 64)}
plain = pytest.mark.skipif(FLAVOUR != "plain", reason="once is enough")


def schedule(simulator: ModuleType, order: str = "FORWARD", offset: int = 0):
    return simulator.Schedule(getattr(simulator.Order, order), offset)


@plain
def test_a_missing_barrier_shows(simulator: ModuleType) -> None:
    orders = [schedule(simulator, order) for order in ("FORWARD", "REVERSE", "AHEAD")]
    for order in orders:
        right = simulator.reverse_block(VALUES[64], simulator.Fence.BLOCK, order)
        assert np.array_equal(right, VALUES[64][::-1])
    wrong = [simulator.reverse_block(VALUES[64], simulator.Fence.NONE, order) for order in orders]
    assert not np.array_equal(wrong[0], wrong[1])
    assert np.isnan(wrong[0]).any()  # read before anything was written


@plain
def test_a_warp_that_runs_ahead_shows_more(simulator: ModuleType) -> None:
    """In the other two orders all threads come to the vote before lane 15 goes on."""
    for order in ("FORWARD", "REVERSE"):
        assert np.isfinite(simulator.read_other_warp(VALUES[64], schedule(simulator, order))).all()
    assert np.isnan(simulator.read_other_warp(VALUES[64], schedule(simulator, "AHEAD"))).any()


@plain
def test_threads_that_wait_in_vain_are_an_error(simulator: ModuleType) -> None:
    forward = schedule(simulator)
    with pytest.raises(RuntimeError, match="25 of 32 threads wait, one of them at __any_sync"):
        simulator.divergent(0, forward)
    with pytest.raises(RuntimeError, match="some threads are at __any_sync, others at __syncwarp"):
        simulator.divergent(1, forward)


@plain
def test_barriers_of_two_source_lines_do_not_meet(simulator: ModuleType) -> None:
    place = r"__syncthreads at \S+simulator.cpp:\d+"
    with pytest.raises(RuntimeError, match=f"some threads are at {place}, others at {place}"):
        simulator.divergent(2, schedule(simulator))


@plain
@pytest.mark.parametrize("reach", [-1, 1])
def test_a_write_beside_memory_is_an_error(simulator: ModuleType, reach: int) -> None:
    for shared, before, behind in ((True, "values", "nothing"), (False, "a buffer", "values")):
        simulator.overrun(shared, 0, schedule(simulator))
        neighbours = ("a buffer", "values") if shared else ("nothing", "a buffer")
        first, second = neighbours if reach < 0 else (before, behind)
        with pytest.raises(RuntimeError, match=f"a kernel wrote behind {first} and before {second}"):
            simulator.overrun(shared, reach, schedule(simulator))


@plain
def test_launches_beyond_the_limits_are_errors(simulator: ModuleType) -> None:
    simulator.beyond_limits(1, 1024, False, schedule(simulator))
    for grid_y, threads, large, message in (
        (65536, 32, False, "grid is out of CUDA's range"),
        (0, 32, False, "grid is out of CUDA's range"),
        (1, 1056, False, "1 to 32 whole warps"),
        (1, 48, False, "1 to 32 whole warps"),
        (1, 32, True, "more than 48 KB of static shared memory: 49153 bytes with large"),
    ):
        with pytest.raises(RuntimeError, match=message):
            simulator.beyond_limits(grid_y, threads, large, schedule(simulator))


@pytest.mark.skipif(FLAVOUR != "race", reason="for the race detector")
class TestRaceDetector:
    RACE = r"race: (read|write) by thread \d+ at simulator.cpp:\d+, (read|write) by thread \d+ at simulator.cpp:\d+"

    @pytest.mark.parametrize("order", ["FORWARD", "REVERSE", "AHEAD", "RANDOM"])
    def test_shared_memory(self, simulator: ModuleType, order: str) -> None:
        """One of the two accesses may come first; no order hides the race."""
        fence, way = simulator.Fence, schedule(simulator, order)
        simulator.reverse_block(VALUES[64], fence.BLOCK, way)
        simulator.reverse_block(VALUES[32], fence.BLOCK, way)
        simulator.reverse_block(VALUES[32], fence.WARP, way)
        for size, wrong in ((64, fence.NONE), (32, fence.NONE), (64, fence.WARP)):
            with pytest.raises(RuntimeError, match=self.RACE):
                simulator.reverse_block(VALUES[size], wrong, way)

    @pytest.mark.parametrize("size", [32, 64])
    @pytest.mark.parametrize("order", ["FORWARD", "RANDOM"])
    def test_a_vote_is_no_fence(self, simulator: ModuleType, order: str, size: int) -> None:
        with pytest.raises(RuntimeError, match=self.RACE):
            simulator.reverse_block(VALUES[size], simulator.Fence.VOTE, schedule(simulator, order))

    @pytest.mark.parametrize("order", ["FORWARD", "REVERSE", "RANDOM"])
    def test_global_memory_between_blocks(self, simulator: ModuleType, order: str) -> None:
        way = schedule(simulator, order)
        simulator.block_numbers(False, False, way)
        with pytest.raises(RuntimeError, match=r"race: write .*of another block, write by"):
            simulator.block_numbers(True, False, way)
        with pytest.raises(RuntimeError, match=r"race: (read|write) .*of another block, (read|write)"):
            simulator.block_numbers(False, True, way)

    def test_atomic_operations_do_not_race(self, simulator: ModuleType) -> None:
        simulator.set_flag(True, schedule(simulator))
        with pytest.raises(RuntimeError, match="race: "):
            simulator.set_flag(False, schedule(simulator))


@pytest.mark.slow
@plain
@pytest.mark.parametrize("flavour", ["race", "sanitized"])
def test_flavour(flavour: str) -> None:
    files = [str(file) for file in Path(__file__).parent.glob("test_*.py") if file.name != "test_host.py"]
    done = run_process(flavour, "-m", "pytest", "--capture=sys", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
@plain
@pytest.mark.parametrize("shared", [True, False])
def test_the_address_sanitizer_sees_memory(shared: bool) -> None:
    script = (
        "from simulator import build; simulator = build.load('sanitized');"
        f"simulator.overrun({shared}, {{}}, simulator.Schedule(simulator.Order.FORWARD, 0))"
    )
    assert run_process("sanitized", "-c", script.format(0)).returncode == 0
    done = run_process("sanitized", "-c", script.format(1))
    assert done.returncode != 0
    assert "use-after-poison" in done.stderr
