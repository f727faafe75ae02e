"""How the weights of pre-training move: AdamW with two kinds of parameters, and the learning rate of each step."""

import math

import torch
from torch import nn
from torch.optim import AdamW

from sepscene.orchestration.config import Training


def learning_rate(training: Training, step: int, steps: int) -> float:
    """Learning rate of step 0 … steps−1: linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(training.warmup_share * steps))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    done = min(step, steps) - warmup  # rows that are tried again may come after the last step
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done / max(1, steps - warmup)))


def adamw(module: nn.Module, training: Training, device: torch.device) -> AdamW:
    """AdamW with weight decay on matrices and kernels alone.

    Biases, the scales and shifts of BatchNorm and a learned log τ are not decayed: zero is no better value for them
    than any other (for log τ it would mean τ = 1). One fused kernel does the update where torch has one: on CPUs, where
    it takes a fifth to a tenth of the time (docs/log/2026-11.md), and on CUDA.
    """
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=training.learning_rate, fused=device.type in ("cpu", "cuda"))
