"""Shallow classification: a multi-layer perceptron with one hidden layer on the frozen representation h.

The paper's downstream task (section "Evaluation"): one hidden layer + ReLU, multi-label, macro mAP. Hidden
units, optimiser and stopping rule are not stated there: [open], below.

Legend: P perceptrons, B clips, D embedding, H hidden units, K classes.

Stopping rule. 15 % of the training clips (at most 20,000) are held out. Adam runs until their loss has not improved
for `PATIENCE` epochs, or for `shallow_epochs` epochs. Then a new network is trained on ALL training clips for the best
number of epochs. So the number of epochs is chosen without the test clips, and all training clips are used, which
matters if there are only 256.

Perceptrons with different seeds are trained together, with one batched product per layer: for a few hundred clips most
of the time of a step is the overhead of calling torch, so five perceptrons take little longer than one.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sepscene.tasks.evaluation.metrics import Bools, Floats
from sepscene.tasks.evaluation.settings import ScoringSettings

VALIDATION_SHARE = 0.15  # of the training clips, held out to choose the number of epochs
VALIDATION_CLIPS = 20_000  # held out at most; more would make the loss on them hardly more exact
PATIENCE = 10  # epochs without improvement until training stops
LEARNING_RATE = 1e-3  # Adam's default
WEIGHT_DECAY = 1e-4  # [open]; ours
SCORING_CLIPS = 8192  # scored at a time, to limit the memory


def train_perceptrons(
    train_h_BD: Floats, train_targets_BK: Bools, test_h_BD: Floats, settings: ScoringSettings
) -> tuple[Floats, NDArray[np.intp]]:
    """Train perceptrons on the training clips and score the test clips.

    Their seeds are `settings.seed` and the numbers after it. On one machine, the same seed gives the same scores with
    any other seeds, up to rounding of the batched products. h is standardised with the mean and standard deviation of
    the training clips.

    Returns:
        Logits, float32 (P, B, K); the number of epochs chosen on the held-out clips, int (P,).
    """
    train_h, test_h = _standardised(train_h_BD, test_h_BD)
    train_targets = torch.from_numpy(np.ascontiguousarray(train_targets_BK))
    seeds = range(settings.seed, settings.seed + settings.perceptrons)
    best_P = _epochs_by_validation(train_h, train_targets, settings, seeds)
    network = _Perceptrons(train_h.shape[1], settings.shallow_hidden, train_targets.shape[1], seeds)
    every_PB = _every_row(train_h, seeds)
    scores_PBK = np.empty((len(seeds), len(test_h), train_targets.shape[1]), np.float32)
    for epoch in _epochs(network, train_h, train_targets, every_PB, int(best_P.max()), seeds):
        ready_P = best_P == epoch
        if ready_P.any():
            scores_PBK[ready_P] = _score(network, test_h, _every_row(test_h, seeds)).numpy()[ready_P]
    return scores_PBK, best_P


class _Perceptrons(nn.Module):
    """Perceptrons of the same shape, with the initial weights of `nn.Linear`.

    The weights are stored transposed, because the gradient of a transposed view would be copied in every step.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, seeds: Sequence[int]) -> None:
        """PyTorch's own initialisation, drawn from one generator per seed; the global random state is not used."""
        super().__init__()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weight_1_PDH, self.bias_1_PH = _linear(inputs, hidden, generators)
        self.weight_2_PHK, self.bias_2_PK = _linear(hidden, outputs, generators)

    def forward(self, h_PBD: Tensor) -> Tensor:
        """Logits (P, B, K); each perceptron has its own clips."""
        hidden_PBH = torch.baddbmm(self.bias_1_PH[:, None], h_PBD, self.weight_1_PDH).relu()
        return torch.baddbmm(self.bias_2_PK[:, None], hidden_PBH, self.weight_2_PHK)


def _linear(inputs: int, outputs: int, generators: Sequence[torch.Generator]) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights (P, inputs, outputs) and biases (P, outputs) as `nn.Linear` draws them."""
    bound = inputs**-0.5
    weights = []
    biases = []
    for generator in generators:
        weights.append(torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator).T)
        biases.append(torch.empty(outputs).uniform_(-bound, bound, generator=generator))
    return nn.Parameter(torch.stack(weights)), nn.Parameter(torch.stack(biases))


def _standardised(train_h_BD: Floats, test_h_BD: Floats) -> tuple[Tensor, Tensor]:
    mean_D = train_h_BD.mean(axis=0, dtype=np.float64)
    # A constant dimension stays (nearly) zero instead of being scaled up.
    deviation_D = np.maximum(train_h_BD.std(axis=0, dtype=np.float64), 1e-6)
    train = (train_h_BD - mean_D) / deviation_D
    test = (test_h_BD - mean_D) / deviation_D
    return torch.from_numpy(train.astype(np.float32)), torch.from_numpy(test.astype(np.float32))


def _every_row(h_BD: Tensor, seeds: Sequence[int]) -> Tensor:
    """All rows for each perceptron, (P, B)."""
    return torch.arange(len(h_BD)).expand(len(seeds), -1)


def _epochs(
    network: _Perceptrons, h_BD: Tensor, targets_BK: Tensor, rows_PB: Tensor, epochs: int, seeds: Sequence[int]
) -> Iterator[int]:
    """Train each perceptron on its rows, in its own order; after each epoch, yield the number of epochs done."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    clips = rows_PB.shape[1]
    for epoch in range(1, epochs + 1):
        order_PB = torch.stack([torch.randperm(clips, generator=generator) for generator in generators])
        for some_PB in rows_PB.gather(1, order_PB).split(_batch_size(clips), dim=1):
            loss_P = _loss(network(h_BD[some_PB]), targets_BK[some_PB])
            optimiser.zero_grad()
            loss_P.sum().backward()  # each loss depends on the weights of one perceptron only
            optimiser.step()
        yield epoch


def _loss(logits_PBK: Tensor, targets_PBK: Tensor) -> Tensor:
    """Binary cross-entropy of each perceptron, (P,), the mean over its clips and classes."""
    entropy = nn.functional.binary_cross_entropy_with_logits(logits_PBK, targets_PBK.float(), reduction="none")
    return entropy.mean(dim=(1, 2))


def _batch_size(clips: int) -> int:
    """About 32 steps per epoch, with batches of 32 to 4096 clips."""
    return int(np.clip(clips // 32, 32, 4096))


def _epochs_by_validation(
    h_BD: Tensor, targets_BK: Tensor, settings: ScoringSettings, seeds: Sequence[int]
) -> np.ndarray:
    """The number of epochs after which the loss on the held-out clips was lowest, int (P,)."""
    clips = len(h_BD)
    order_PB = torch.stack([torch.randperm(clips, generator=torch.Generator().manual_seed(s + 1)) for s in seeds])
    held_out = min(max(1, int(VALIDATION_SHARE * clips)), VALIDATION_CLIPS)
    held_PB, rows_PB = order_PB.tensor_split([held_out], dim=1)
    network = _Perceptrons(h_BD.shape[1], settings.shallow_hidden, targets_BK.shape[1], seeds)
    best_loss_P = np.full(len(seeds), np.inf)
    best_P = np.full(len(seeds), settings.shallow_epochs)
    running_P = np.ones(len(seeds), bool)
    for epoch in _epochs(network, h_BD, targets_BK, rows_PB, settings.shallow_epochs, seeds):
        loss_P = _loss(_score(network, h_BD, held_PB), targets_BK[held_PB]).numpy()
        better_P = running_P & (loss_P < best_loss_P)
        best_loss_P[better_P] = loss_P[better_P]
        best_P[better_P] = epoch
        running_P &= epoch - best_P < PATIENCE
        if not running_P.any():
            break
    return best_P


@torch.no_grad()
def _score(network: _Perceptrons, h_BD: Tensor, rows_PB: Tensor) -> Tensor:
    """Logits (P, B, K) of each perceptron for its rows, computed in pieces to limit memory."""
    return torch.cat([network(h_BD[some_PB]) for some_PB in rows_PB.split(SCORING_CLIPS, dim=1)], dim=1)
