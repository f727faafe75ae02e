"""The optimiser of pre-training: AdamW with two parameter groups, and its learning rate schedule."""

import math

import torch
from torch import nn
from torch.optim import AdamW

from sepscene.orchestration.config import Training


def learning_rate(training: Training, step: int, steps: int) -> float:
    """Learning rate of step 0 … steps−1: linear warm-up, then cosine decay to zero."""
    warmup = max(1, round(training.warmup_share * steps))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    done = min(step, steps) - warmup  # rows that are tried again can come after the last step
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done / max(1, steps - warmup)))


def adamw(module: nn.Module, training: Training, device: torch.device) -> AdamW:
    """AdamW with weight decay on matrices and kernels only.

    Biases, the scales and shifts of BatchNorm and a learned log τ are not decayed: zero is not a better value for them
    than any other (for log τ it would mean τ = 1). The update is fused where torch supports it: on CUDA, and on CPUs,
    where it takes a fifth to a tenth of the time (docs/log/2026-11.md).
    """
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=training.learning_rate, fused=device.type in ("cpu", "cuda"))
