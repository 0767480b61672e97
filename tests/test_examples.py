"""The examples: that training helps, that each loss reaches what it is for, and that nothing leaves the folder."""

import ast
import importlib.util
import math
import random
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from dadl import MomentumEncoder

from dadl_ext import RankSimLoss

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    return load("plain_pytorch")


@pytest.fixture(scope="module")
def lightning(unhidden: None) -> ModuleType:
    return load("lightning_module")


@pytest.fixture(scope="module")
def hugging_face() -> ModuleType:
    return load("hugging_face_trainer")


@pytest.fixture(autouse=True)
def sealed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is called, and nothing is written where the example was started."""
    started_in = tmp_path_factory.mktemp("started_in")
    monkeypatch.chdir(started_in)
    calls = []

    def refuse(*args: object, **_: object) -> None:
        calls.append(args)
        raise OSError("the examples need no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert calls == []
    assert list(started_in.iterdir()) == []


def test_plain_weights_help_rare_labels_and_ranksim_orders_the_features(plain: ModuleType) -> None:
    errors = plain.main()
    assert list(errors) == ["L1", "L1, LDS", "L1, LDS, RankSim"]
    l1, weighted, both = errors.values()
    assert weighted["few"] < 0.9 * l1["few"]
    assert both["few"] < 0.8 * l1["few"]
    assert both["disorder"] < 0.5 * min(l1["disorder"], weighted["disorder"])
    assert all(math.isfinite(error) for row in errors.values() for error in row.values())


def test_lightning_unlabelled_samples_help(lightning: ModuleType, tmp_path: Path) -> None:
    accuracy = lightning.main(tmp_path)
    assert accuracy["cross-entropy"] > 4 / lightning.CLASSES
    assert accuracy["Self-Tuning"] > accuracy["cross-entropy"] + 0.03


def test_lightning_the_queue_holds_the_right_classes(
    lightning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = []
    update = MomentumEncoder.update
    monkeypatch.setattr(MomentumEncoder, "update", lambda *args: (updates.append(args), update(*args)))
    data = lightning.make_data(0)
    module, _, checkpoint = lightning.train(data, tmp_path, epochs=6)
    assert f"step={len(updates)}" in checkpoint.name  # the key encoder follows once a step

    queue = module.contrast.queue
    assert (queue.slot_count == queue.keys.shape[1]).all()
    inputs, target = data[2].tensors
    nearest = torch.einsum("nd,csd->nc", module.key_encoder(inputs), queue.keys).argmax(dim=1)
    assert (nearest == target).float().mean() > 0.6


def test_lightning_checkpoints_hold_the_queue(lightning: ModuleType, tmp_path: Path) -> None:
    data = lightning.make_data(0)
    module, _, checkpoint = lightning.train(data, tmp_path, epochs=2)
    saved = module.state_dict()
    assert {"contrast.queue.keys", "contrast.queue.slot_count", "contrast.queue.pointer"} < set(saved)
    loaded = lightning.SelfTuning.load_from_checkpoint(checkpoint)
    resumed, _, _ = lightning.train(data, tmp_path, epochs=2, resume=checkpoint)  # no epoch is left
    for restored in (loaded.state_dict(), resumed.state_dict()):
        torch.testing.assert_close(restored, saved, rtol=0, atol=0)
    assert not torch.equal(lightning.SelfTuning().contrast.queue.keys, saved["contrast.queue.keys"])


def test_hugging_face_training_helps(hugging_face: ModuleType, tmp_path: Path) -> None:
    errors = hugging_face.main(tmp_path)
    for region in ("all", "many", "medium", "few"):
        assert errors["after"][region] < 0.4 * errors["before"][region]


def test_hugging_face_ranksim_reaches_the_encoder_and_not_the_head(hugging_face: ModuleType, tmp_path: Path) -> None:
    tokenizer = hugging_face.make_tokenizer()
    pairs = hugging_face.make_pairs(32, tokenizer, random.Random(0))
    trainer = hugging_face.make_trainer(tmp_path, tokenizer, pairs, pairs)
    model, ranksim = trainer.model, RankSimLoss(weight=10.0)  # large, to be seen beside the L1
    batch = trainer.data_collator(pairs)

    assert trainer.ranksim.weight > 0
    trainer.ranksim = None
    l1 = trainer.compute_loss(model, dict(batch))
    trainer.ranksim = ranksim
    torch.manual_seed(0)  # equal labels draw who stands for them
    added = trainer.compute_loss(model, dict(batch)) - l1

    labels = batch.pop("labels")
    pooled = model.bert(**batch).last_hidden_state[:, 0]
    torch.manual_seed(0)
    torch.testing.assert_close(added, ranksim(pooled, labels))
    encoder = model.bert.embeddings.word_embeddings.weight
    head = model.classifier.weight
    by_encoder, by_head = torch.autograd.grad(added, [encoder, head])
    assert by_encoder.abs().max() > 0
    torch.testing.assert_close(by_head, torch.zeros_like(by_head), rtol=0, atol=1e-6)


def test_hugging_face_accumulated_gradients_are_divided(hugging_face: ModuleType, tmp_path: Path) -> None:
    tokenizer = hugging_face.make_tokenizer()
    pairs = hugging_face.make_pairs(1, tokenizer, random.Random(0)) * 8

    def after_one_step(accumulate: int) -> torch.Tensor:
        torch.manual_seed(0)
        trainer = hugging_face.make_trainer(
            tmp_path,
            tokenizer,
            pairs,
            pairs,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=accumulate,
            max_steps=1,
            warmup_steps=0,
            optim="sgd",
            max_grad_norm=0.0,
        )
        trainer.train()
        return trainer.model.classifier.weight.detach()

    once = after_one_step(1)
    torch.manual_seed(0)
    assert (once - hugging_face.make_model(len(tokenizer)).classifier.weight).abs().max() > 1e-4
    torch.testing.assert_close(after_one_step(2), once)


def test_the_extra_of_the_examples_names_what_they_import() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        re.split(r"[\[>=]", name)[0]
        for name in (*project["dependencies"], *project["optional-dependencies"]["examples"])
    }
    for file in EXAMPLES.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for package in {module.split(".")[0] for module in modules}:
                assert package in named | {"dadl", "dadl_ext"} or package in sys.stdlib_module_names, package
