"""Text regression with the Hugging Face Trainer: L1 and RankSim in ``compute_loss``.

    python examples/hugging_face_trainer.py

How much better is the first review than the second? Most pairs are close, few are far apart: the labels are imbalanced.
A small BERT reads both reviews at once; RankSim orders the state of its first token, from which the head regresses. The
error is reported over labels with many, medium and few training pairs. This shows where the loss goes; on a task this
easy it changes the error little. Reviews, vocabulary and initial weights are made up on the spot, nothing comes from a
hub, and everything takes seconds on a CPU.
"""

import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from dadl import bin_labels, shot_metrics
from dadl.metrics import REGIONS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dadl_ext import RankSimLoss

VERDICTS = ["awful", "bad", "fair", "good", "superb"]
SUBJECTS = ["food", "wine", "staff", "music", "view"]
FURTHEST, BINS = len(VERDICTS) - 1, 16

Pairs = list[dict[str, Any]]


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[CLS]", "[SEP]", "the", "was", *SUBJECTS, *VERDICTS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


def make_pairs(count: int, tokenizer: PreTrainedTokenizerFast, draw: random.Random) -> Pairs:
    """Tokenised pairs of reviews; the label is the difference of their mean verdicts, between -4 and 4."""

    def review() -> tuple[str, float]:
        verdicts = [draw.randrange(len(VERDICTS)) for _ in range(draw.randint(1, 3))]
        text = " ".join(f"the {draw.choice(SUBJECTS)} was {VERDICTS[verdict]}" for verdict in verdicts)
        return text, sum(verdicts) / len(verdicts)

    pairs = []
    for _ in range(count):
        (first, one), (second, other) = review(), review()
        pairs.append({**tokenizer(first, second), "labels": one - other})
    return pairs


def make_model(vocabulary: int) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
        num_labels=1,
    )
    return BertForSequenceClassification(config)


class RankSimTrainer(Trainer):
    """A Trainer for regression whose loss is L1 plus, if given, RankSim on the state of the first token."""

    def __init__(self, *args: Any, ranksim: RankSimLoss | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranksim = ranksim
        # The loss below is a mean over the batch: under gradient accumulation the Trainer still has to divide it.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs, output_hidden_states=True)
        loss = nn.functional.l1_loss(outputs.logits.squeeze(1), labels)
        if self.ranksim is not None:
            loss = loss + self.ranksim(outputs.hidden_states[-1][:, 0], labels)
        # Evaluation gathers what is returned here: the hidden states stay behind.
        return (loss, {"logits": outputs.logits}) if return_outputs else loss


def make_trainer(
    folder: Path, tokenizer: PreTrainedTokenizerFast, training: Pairs, test: Pairs, **settings: Any
) -> RankSimTrainer:
    """A trainer with RankSim; ``settings`` replace some of its :class:`TrainingArguments`."""

    def bins_of(labels: Tensor) -> Tensor:
        return bin_labels(labels, -FURTHEST, FURTHEST, BINS)

    counts = torch.bincount(bins_of(torch.tensor([pair["labels"] for pair in training])), minlength=BINS)

    def errors(evaluated: EvalPrediction) -> dict[str, float]:
        predictions, labels = torch.as_tensor(evaluated.predictions), torch.as_tensor(evaluated.label_ids)
        regions = shot_metrics(predictions.squeeze(1), labels, bins_of(labels), counts)
        return {region: error.mae for region, error in regions.items()}

    defaults = {
        "learning_rate": 2e-3,
        "warmup_steps": 20,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 256,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return RankSimTrainer(
        make_model(len(tokenizer)),
        TrainingArguments(str(folder), **{**defaults, **settings}),
        train_dataset=training,
        eval_dataset=test,
        processing_class=tokenizer,  # brings the collator that pads
        compute_metrics=errors,
        ranksim=RankSimLoss(weight=3e-4),  # the paper's γ for pairs of sentences (STS-B)
    )


def errors_of(trainer: Trainer) -> dict[str, float]:
    metrics = trainer.evaluate()
    return {region: metrics[f"eval_{region}"] for region in REGIONS}


def main(folder: Path, seed: int = 0) -> dict[str, dict[str, float]]:
    """The MAE over all labels and by region, before and after training."""
    draw, tokenizer = random.Random(seed), make_tokenizer()
    training, test = make_pairs(2000, tokenizer, draw), make_pairs(1000, tokenizer, draw)
    set_seed(seed)
    trainer = make_trainer(folder, tokenizer, training, test, seed=seed)
    before = errors_of(trainer)
    trainer.train()
    result = {"before": before, "after": errors_of(trainer)}
    for name, errors in result.items():
        print(f"{name:8}" + "  ".join(f"{region} {error:.3f}" for region, error in errors.items()))
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
