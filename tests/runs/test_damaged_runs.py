"""Run folders that accidents or people have changed: every change is refused with a sentence, or has no effect.

``DADL_FUZZ=20`` tries twenty times as many changes.
"""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning_fabric", reason="needs pip install 'dadl[train]'")

import yaml
from dadl import Run
from dadl.cmw_net.recipe import CMWNetRecipe, load_weight_net
from dadl.errors import UserError
from dadl.ranksim.recipe import RankSimRecipe
from dadl.report.page import write_report
from dadl.runs.recipe import Recipe
from dadl.runs.train import RunOptions, train_run
from dadl.training import TrainingError
from matplotlib.layout_engine import ConstrainedLayoutEngine
from support.folders import grey_idx_folder
from support.runs import QUIET

ROUNDS = int(os.environ.get("DADL_FUZZ", "1"))
ODD: list[Any] = [None, "", "x", "\0", "cpu", -1, 0, 3, 1e300, -0.5, 10**12, 10**30, True, [], [1], [[]], {}, {"a": 1}]
ODD_TENSORS: list[Callable[[torch.Tensor], Any]] = [
    lambda tensor: tensor.double(),
    lambda tensor: tensor.long(),
    lambda tensor: tensor[None],
    lambda tensor: tensor.flatten()[:1],
    lambda tensor: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor - 10**6,
    lambda tensor: torch.full_like(tensor, torch.inf) if tensor.is_floating_point() else tensor + 10**6,
    lambda tensor: torch.empty(0),
]


def houses(file: Path) -> Path:
    draw = random.Random(0)
    rows = [(draw.uniform(30, 150), draw.randint(1, 6), draw.choice(["Ely", "Diss"])) for _ in range(40)]
    lines = [
        f"{i},{size:.1f},{rooms},{town},{3000 * size + 1000 * rooms:.0f}" for i, (size, rooms, town) in enumerate(rows)
    ]
    file.write_text("\n".join(["id,size,rooms,town,price", *lines, ""]))
    return file


def make_ranksim(folder: Path) -> Recipe:
    columns: dict[str, Any] = {"target": "price", "features": ("size", "rooms"), "one_hot": ("town",)}
    data = houses(folder / "houses.csv")
    return RankSimRecipe(
        data=data, **columns, epochs=2, batch_size=8, hidden=4, fds=True, loss="bmc", checkpoint_every=3
    )


def make_cmw_net(folder: Path) -> Recipe:
    settings: dict[str, Any] = {"backbone": "torch.nn:Flatten", "meta": "lowest-loss", "warm_up": 0.1, "batch_size": 4}
    return CMWNetRecipe(data=grey_idx_folder(folder / "idx"), **settings, epochs=3, lr=0.01, checkpoint_every=1)


STOPPED_AFTER = 8  # steps: in the last epoch of both, and after a checkpoint within it


class Interrupted(Exception):
    pass


class Case:
    """A finished run, one stopped in its last epoch, and what they give unchanged."""

    def __init__(self, folder: Path, make: Callable[[Path], Recipe]) -> None:
        folder.mkdir()
        self.folder, self.recipe = folder, make(folder)
        self.finished, self.stopped, self.changed = (folder / name for name in ("finished", "stopped", "changed"))
        self.table = train_run(self.recipe, self.options(self.finished), QUIET)
        kind = type(self.recipe)
        make_method, steps = kind.make_method, list[int]()

        def stopping(recipe: Any, facts: Any) -> Any:
            method = make_method(recipe, facts)
            after_step = method.after_step

            def count() -> None:
                after_step()
                steps.append(1)
                if len(steps) == STOPPED_AFTER:
                    raise Interrupted

            method.after_step = count
            return method

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "make_method", stopping)
            with pytest.raises(Interrupted):
                train_run(self.recipe, self.options(self.stopped), QUIET)
        self.predicted = self.predict(self.finished)

    @staticmethod
    def options(folder: Path) -> RunOptions:
        return RunOptions(output=folder, resume=True, device="cpu")

    @property
    def unseen(self) -> Path:
        if isinstance(self.recipe, RankSimRecipe):
            return self.recipe.data
        images = self.folder / "images"
        if not images.exists():
            from PIL import Image

            images.mkdir()
            for i in range(3):
                Image.new("L", (16, 12), 40 * i).save(images / f"{i}.png")
        return images

    def predict(self, run: Path) -> bytes:
        output = self.folder / "predicted.csv"
        Run.load(run, trust_code=True).write_predictions(self.unseen, output, device="cpu", progress=False)
        return output.read_bytes()

    def report(self) -> None:
        write_report([self.changed], self.folder / "report.html")

    def use(self, source: Path, name: str, change: Callable[[Path], object], exact: bool = True) -> None:
        """Change a file of a copy, and do with it everything that the commands do.

        ``exact``: what is not refused must not change predictions and scores.
        """
        shutil.rmtree(self.changed, ignore_errors=True)
        shutil.copytree(source, self.changed)
        what = change(self.changed / name)
        before = (self.changed / "last.ckpt").read_bytes()
        report = [] if name.endswith((".ckpt", "run.json", ".yaml")) else [(self.report, None)]
        for action, expected in (
            *report,
            (lambda: self.predict(self.changed), self.predicted if source == self.finished else None),
            (lambda: Run.load(self.changed, trust_code=True).evaluate(part="test", device="cpu", progress=False), None),
            (lambda: load_weight_net(self.changed), None),
            (lambda: train_run(self.recipe, self.options(self.changed), QUIET), self.table),
        ):
            result, error = attempt(action)
            assert error is None or isinstance(error, UserError), f"{source.name}/{name}, {what}: {error!r}"
            assert error is None or 0 < len(str(error).strip()) < 3000, what
            if error is None and expected is not None and exact:
                assert result == expected, f"{source.name}/{name}, {what}: another value"
        assert not list(self.changed.glob(".*")), what
        if source == self.stopped and isinstance(error, UserError) and not isinstance(error, TrainingError):
            # It was refused; other numbers may also train on for a while, and then diverge.
            assert (self.changed / "last.ckpt").read_bytes() == before


def attempt(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, error


@pytest.fixture(autouse=True)
def unarranged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arranging the parts of a picture takes as long as drawing it."""
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda *_: None)


@pytest.fixture(scope="module", params=[make_ranksim, make_cmw_net], ids=["ranksim", "cmw-net"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("runs") / "case", request.param)


def damage(draw: random.Random) -> Callable[[Path], None]:
    """A change of the bytes of a file."""

    def change(file: Path) -> None:
        content = bytearray(file.read_bytes())
        at, kind = draw.randrange(len(content)), draw.randrange(5)
        if kind <= 1:
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del content[at:]
        elif kind == 3:
            content[at : at + 16] = bytes(min(16, len(content) - at))
        else:
            content[at:at] = draw.randbytes(draw.randrange(1, 9))
        file.write_bytes(content)

    return change


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt", "run.json", "config.yaml", "log.csv", "results.json"])
def test_damaged_bytes(case: Case, name: str) -> None:
    draw = random.Random(name)
    for _ in range(3 * ROUNDS):
        source = case.stopped if draw.random() < 0.5 and (case.stopped / name).exists() else case.finished
        if (source / name).exists():
            case.use(source, name, damage(draw))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in items:
        yield (*path, key)
        yield from places(part, (*path, key))


def changed(value: Any, place: tuple[Any, ...], draw: random.Random) -> tuple[Any, Any]:
    """The value with another one in that place, or none, and what was done."""
    whole = copy.deepcopy(value)
    holder = whole
    for key in place[:-1]:
        holder = holder[key]
    if isinstance(holder, tuple):
        return whole, None
    old = holder[place[-1]]
    if draw.random() < 0.15:
        del holder[place[-1]]
        return whole, (place, "deleted")
    new = draw.choice(ODD_TENSORS)(old) if isinstance(old, torch.Tensor) and draw.random() < 0.8 else draw.choice(ODD)
    holder[place[-1]] = new
    return whole, (place, repr(new)[:60])


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "results.json"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_other_values(case: Case, name: str, old: bool) -> None:
    """``old``: a run of a version that wrote no digest; then a changed value may be as good as another one."""
    draw = random.Random(f"{name} {old}")
    read = yaml.safe_load if name == "config.yaml" else json.loads
    write = yaml.safe_dump if name == "config.yaml" else json.dumps
    places_of_all = list(places(read((case.finished / name).read_text())))
    for place in draw.sample(places_of_all, min(len(places_of_all), 4 * ROUNDS)):

        def change(file: Path, place: tuple[Any, ...] = place) -> object:
            if old:
                record = json.loads((file.parent / "run.json").read_text())
                del record["digest"]
                (file.parent / "run.json").write_text(json.dumps(record))
            whole, what = changed(read(file.read_text()), place, draw) if place != ("digest",) else ({}, place)
            file.write_text(write(whole))
            return what

        case.use(case.finished, name, change, exact=not old)


def test_other_values_in_checkpoints(case: Case) -> None:
    draw = random.Random(1)
    for name in ("best.ckpt", "last.ckpt"):
        if not (case.stopped / name).exists():
            continue
        state = torch.load(case.stopped / name, weights_only=True)
        all_places = list(places(state))
        for place in draw.sample(all_places, min(len(all_places), 8 * ROUNDS)):

            def change(file: Path, state: Any = state, place: tuple[Any, ...] = place) -> object:
                whole, what = changed(state, place, draw)
                torch.save(whole, file)
                return what

            case.use(case.stopped, name, change, exact=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "[" * 100_000),
        ("run.json", '{"recipe": "ranksim", "recipe": "cmw-net"}'),
        ("run.json", '{"recipe": NaN}'),
        ("run.json", '{"recipe": ' + "9" * 5000 + "}"),
        ("run.json", "[]"),
        ("run.json", ""),
        ("config.yaml", "[" * 20_000),
        ("config.yaml", "data: x\ndata: y\n"),
        ("config.yaml", "data: !!python/object/apply:os.mkdir [harm]\n"),
        ("config.yaml", "a: &a [x, x]\nb: [*a, *a]\n"),
        ("config.yaml", "- 3\n"),
        ("config.yaml", ""),
        ("config.yaml", "data: \xff\n"),
        ("config.yaml", "epochs: 0x" + "f" * 9000),
        ("config.yaml", "? [a]\n: 3\n"),
        ("config.yaml", "\t"),
        ("results.json", "[" * 100_000),
        ("results.json", '{"a": 1, "a": 2}'),
    ],
)
def test_files_of_another_kind(case: Case, name: str, content: str, tmp_path: Path) -> None:
    case.use(case.finished, name, lambda file: file.write_text(content, encoding="latin-1"))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden", 10**12),
        ("batch_size", 0),
        ("ks", None),
        ("ks", 4),
        ("epochs", "many"),
        ("lr", float("inf")),
        ("fds", 1),
    ],
)
def test_settings_of_a_run_folder_pass_the_checks_of_the_command_line(
    case: Case, setting: str, value: Any, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(case.finished, tmp_path / "run"))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(settings | {setting: value}))
    name = setting.replace("_", "-")
    with pytest.raises(UserError, match=rf"config\.yaml: .*({name}|has no setting)"):
        Run.load(run, trust_code=True)


def test_a_changed_run_is_refused_and_moved_data_are_not(case: Case, tmp_path: Path) -> None:
    run = Path(shutil.copytree(case.finished, tmp_path / "run"))
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(settings | {"data": "/moved"}))
    assert Run.load(run, trust_code=True).recipe.data == Path("/moved")
    config.write_text(yaml.safe_dump(settings | {"seed": 7}))
    with pytest.raises(UserError, match="are not as the run wrote them"):
        Run.load(run, trust_code=True)
