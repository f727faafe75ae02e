"""Shallow classification: a multi-layer perceptron with one hidden layer on the frozen representation h.

The paper's downstream task (section "Evaluation"): one hidden layer + ReLU, multi-label, macro mAP. Hidden
units, optimiser and stopping rule are not stated there: [open], ours, below.

Legend: B clips, D embedding, K classes.

Stopping rule. 15 % of the training clips (at most 20,000) are set aside; Adam runs until their loss has not
improved for `PATIENCE` epochs, at most `epochs`. Then a fresh network is trained on ALL training clips for
the number of epochs that was best. So the budget is found without the test clips and no training clip is
wasted, which matters with 256 of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sepscene.tasks.evaluation.metrics import Bools, Floats, Macro, check_split, mean_average_precision
from sepscene.tasks.evaluation.settings import ScoringSettings

VALIDATION_SHARE = 0.15
VALIDATION_CLIPS = 20_000
PATIENCE = 10
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
SCORING_CLIPS = 65_536


@dataclass(frozen=True, eq=False)
class ShallowResult:
    """What shallow classification found.

    Attributes:
        scores_BK: logits of the test clips, float32.
        average_precision: for every class, and mAP as its value.
        epochs: the training epochs that the validation clips chose.
    """

    scores_BK: Floats
    average_precision: Macro
    epochs: int


def train_perceptrons(
    train_h_BD: Floats,
    train_targets_BK: Bools,
    test_h_BD: Floats,
    test_targets_BK: Bools,
    classes: Sequence[str] | None = None,
    settings: ScoringSettings | None = None,
    device: str = "cpu",
) -> tuple[ShallowResult, ...]:
    """Shallow classification by several perceptrons that differ in their seed, as the settings say.

    Raises:
        EvaluationError: as `shallow_classification`.
    """
    settings = settings or ScoringSettings()
    split = (train_h_BD, train_targets_BK, test_h_BD, test_targets_BK)
    return tuple(
        shallow_classification(*split, classes, settings.shallow_hidden, settings.shallow_epochs, seed, device)
        for seed in range(settings.seed, settings.seed + settings.perceptrons)
    )


def shallow_classification(
    train_h_BD: Floats,
    train_targets_BK: Bools,
    test_h_BD: Floats,
    test_targets_BK: Bools,
    classes: Sequence[str] | None = None,
    hidden: int = 512,
    epochs: int = 100,
    seed: int = 0,
    device: str = "cpu",
) -> ShallowResult:
    """Train the perceptron on the training clips and evaluate its ranking of the test clips.

    The same seed gives the same scores on the same machine. h is standardised with the training clips' mean
    and deviation; the embeddings stay in host memory and travel to `device` batch by batch.

    Raises:
        EvaluationError: for NaN embeddings, shapes that do not fit, or no class with a positive test clip.
    """
    names = check_split(train_h_BD, train_targets_BK, test_h_BD, test_targets_BK, classes)
    train_h, test_h = _standardised(train_h_BD, test_h_BD)
    train_targets = torch.from_numpy(np.ascontiguousarray(train_targets_BK))
    best_epochs = _epochs_by_validation(train_h, train_targets, hidden, epochs, seed, device)
    network = _network(train_h.shape[1], hidden, train_targets.shape[1], seed, device)
    for _ in _epochs(network, train_h, train_targets, best_epochs, seed):
        pass
    scores_BK = _score(network, test_h).numpy()
    return ShallowResult(scores_BK, mean_average_precision(scores_BK, test_targets_BK, names), best_epochs)


def _standardised(train_h_BD: Floats, test_h_BD: Floats) -> tuple[Tensor, Tensor]:
    mean_D = train_h_BD.mean(axis=0, dtype=np.float64)
    # A dimension that never changes stays (nearly) zero instead of being blown up.
    deviation_D = np.maximum(train_h_BD.std(axis=0, dtype=np.float64), 1e-6)
    train, test = ((h_BD - mean_D) / deviation_D for h_BD in (train_h_BD, test_h_BD))
    return torch.from_numpy(train.astype(np.float32)), torch.from_numpy(test.astype(np.float32))


def _network(inputs: int, hidden: int, outputs: int, seed: int, device: str) -> nn.Sequential:
    """PyTorch's own initialisation, drawn from a generator of its own: no global state is touched."""
    first = nn.utils.skip_init(nn.Linear, inputs, hidden)
    last = nn.utils.skip_init(nn.Linear, hidden, outputs)
    generator = torch.Generator().manual_seed(seed)
    for layer in (first, last):
        bound = layer.in_features**-0.5
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return nn.Sequential(first, nn.ReLU(), last).to(device)


def _epochs(network: nn.Sequential, h_BD: Tensor, targets_BK: Tensor, epochs: int, seed: int) -> Iterator[int]:
    """Train, yielding the number of epochs done after each."""
    device = next(network.parameters()).device
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    batch = _batch_size(len(h_BD))
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(h_BD), generator=generator).split(batch):
            logits = network(h_BD[rows].to(device))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, targets_BK[rows].to(device).float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        yield epoch


def _batch_size(clips: int) -> int:
    """About 32 steps an epoch, within 32 to 4096 clips: enough for few clips, not too many for many."""
    return int(np.clip(clips // 32, 32, 4096))


def _epochs_by_validation(h_BD: Tensor, targets_BK: Tensor, hidden: int, epochs: int, seed: int, device: str) -> int:
    """The number of epochs after which the loss on clips set aside was lowest."""
    order = torch.randperm(len(h_BD), generator=torch.Generator().manual_seed(seed + 1))
    aside = min(max(1, int(VALIDATION_SHARE * len(h_BD))), VALIDATION_CLIPS)
    held_h = h_BD[order[:aside]]
    held_targets = targets_BK[order[:aside]].float()
    network = _network(h_BD.shape[1], hidden, targets_BK.shape[1], seed, device)
    best_loss = float("inf")
    best_epoch = epochs
    for epoch in _epochs(network, h_BD[order[aside:]], targets_BK[order[aside:]], epochs, seed):
        loss = nn.functional.binary_cross_entropy_with_logits(_score(network, held_h), held_targets).item()
        if loss < best_loss:
            best_loss = loss
            best_epoch = epoch
        elif epoch - best_epoch >= PATIENCE:
            break
    return best_epoch


@torch.no_grad()
def _score(network: nn.Sequential, h_BD: Tensor) -> Tensor:
    """Logits (B, K) on the host, in pieces that fit any device."""
    device = next(network.parameters()).device
    return torch.cat([network(piece.to(device)).cpu() for piece in h_BD.split(SCORING_CLIPS)])
