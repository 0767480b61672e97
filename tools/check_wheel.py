"""Installs a wheel in a new environment outside of the checkout, for the Python that runs this, and uses it there.

    python3.13 tools/check_wheel.py dist torch==2.13.0     (make wheel-check)

It needs nothing but the Python: pip brings the rest. Where there is a wheel with CUDA too, that without is taken.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

USE = """
import csv, math, random, sys
from pathlib import Path

import torch

import dadl
import dadl_ext
from dadl_ext import functional, reference

for package in (dadl, dadl_ext):
    assert Path(package.__file__).is_relative_to(sys.argv[1]), package.__file__
torch.manual_seed(0)
random.seed(0)
x, y = torch.randn(64, 16, dtype=torch.float64), torch.rand(64, dtype=torch.float64)
torch.testing.assert_close(functional.ranksim_loss(x, y), reference.ranksim_loss(x, y))
with open("rows.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["x", "y"])
    rows.writerows([a, math.exp(a)] for a in (random.gauss(0, 1) for _ in range(200)))
run = dadl.train("ranksim", data="rows.csv", target="y", features=["x"], epochs=2, device="cpu", output="run")
assert math.isfinite(run.scores["all"]["MAE"]), run.scores
print(dadl.__version__, torch.__version__, sys.version.split()[0], dadl_ext.build_info()["cpu_library"])
"""


def wheel_in(folder: Path) -> Path:
    """The wheel for this machine's processor without CUDA, which has no build number."""
    found = sorted(folder.glob(f"dadl-*-py3-none-*_{platform.machine()}.whl"))
    plain = [wheel for wheel in found if wheel.name.count("-") == 4]
    if len(plain) != 1:
        names = ", ".join(wheel.name for wheel in found) or "none"
        sys.exit(f"{folder} must hold one wheel for {platform.machine()} without CUDA, and holds {names}: make wheel")
    return plain[0].resolve()


def use(python: Path, site: Path, place: Path, **environment: str) -> None:
    """Import, compute, train and call the command, in a folder that holds nothing."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    subprocess.run([python, "-c", USE, site], cwd=place, env=clean, check=True)
    subprocess.run([python, "-m", "dadl", "info"], cwd=place, env=clean, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="that holds the wheel")
    parser.add_argument("torch", help="the requirement")
    options = parser.parse_args()
    wheel = wheel_in(options.folder)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory).resolve()
        venv.create(place / "environment", with_pip=True)
        python = place / "environment" / "bin" / "python"
        (place / "empty").mkdir()
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([python, *install, f"{wheel}[train]", options.torch], cwd=place, check=True)
        use(python, place / "environment", place / "empty")


if __name__ == "__main__":
    main()
