"""At what temperature does a substance melt? Measured melting points, and numbers that describe the molecules.

The melting points are those of the Jean-Claude Bradley Open Melting Point Dataset (2014), with the structures that
PubChem gives for the CAS numbers; both come with the Python package ``chemicals``. ``rdkit`` describes the molecules.
"""

import importlib.metadata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..files import write_csv
from ..output import JobProgress

TABLE, TARGET = "melting-points.csv", "melting_point"

_MEASURED = "Phase Change/OpenNotebook Melting Points.tsv"
_STRUCTURES = (
    "Identifiers/chemical identifiers pubchem small.tsv",
    "Identifiers/chemical identifiers pubchem large.tsv",
)
_CAS, _SMILES = 1, 4  # columns of the structures


def write_melting_points(folder: Path, every: int, progress: JobProgress) -> None:
    """Write the table of every so many-th substance: ``melting_point`` in K, and a column for each descriptor.

    Descriptors that are the same for all substances are left out.
    """
    rows = []
    substances = list(islice(_substances(), 0, None, every))
    progress.start("Describing molecules", total=len(substances))
    for smiles, melting_point in substances:
        if (numbers := _descriptors(smiles)) is not None:
            rows.append({TARGET: melting_point, **numbers})
        progress.advance()
    varied = [name for name in rows[0] if any(row[name] != rows[0][name] for row in rows)]
    write_csv(folder / TABLE, [{name: f"{row[name]:.6g}" for name in varied} for row in rows])


def _substances() -> Iterator[tuple[str, float]]:
    """The structure of every substance, as SMILES, and its melting point in K."""
    folder = Path(str(importlib.metadata.distribution("chemicals").locate_file("chemicals")))
    with (folder / _MEASURED).open(encoding="utf-8") as lines:
        next(lines)  # the names of the columns
        left = {cas: float(kelvin) for cas, kelvin in (line.split("\t")[:2] for line in lines)}
    for name in _STRUCTURES:
        with (folder / name).open(encoding="utf-8") as lines:
            for line in lines:
                columns = line.split("\t", _SMILES + 1)
                if columns[_CAS] in left:
                    yield columns[_SMILES], left.pop(columns[_CAS])


def _descriptors(smiles: str) -> dict[str, float] | None:
    """What RDKit counts and sums over the atoms of a molecule; ``None`` for a structure that it does not accept."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdMolDescriptors as describe

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return None
    groups = {
        "count": describe.MQNs_(molecule),
        "charge_area": describe.PEOE_VSA_(molecule),
        "refractivity_area": describe.SMR_VSA_(molecule),
        "lipophilicity_area": describe.SlogP_VSA_(molecule),
    }
    lipophilicity, refractivity = describe.CalcCrippenDescriptors(molecule)
    return {
        "mass": describe.CalcExactMolWt(molecule),
        "lipophilicity": lipophilicity,
        "refractivity": refractivity,
        "polar_area": describe.CalcTPSA(molecule),
        "sp3_carbons": describe.CalcFractionCSP3(molecule),
        "aromatic_rings": describe.CalcNumAromaticRings(molecule),
        "aliphatic_rings": describe.CalcNumAliphaticRings(molecule),
        "amide_bonds": describe.CalcNumAmideBonds(molecule),
        "flexibility": describe.CalcPhi(molecule),
        "kappa_1": describe.CalcKappa1(molecule),
        "kappa_2": describe.CalcKappa2(molecule),
        "kappa_3": describe.CalcKappa3(molecule),
    } | {f"{group}_{i}": value for group, values in groups.items() for i, value in enumerate(values, start=1)}
