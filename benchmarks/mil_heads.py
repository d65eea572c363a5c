"""Heads of `quality_mil.py`: how each is built, and the one plain loop that trains them all.

The loop has no Lightning around it, since a training takes a second; network, loss and standardisation are medseq's.
Training draws the same number of instances from every bag at each step, so a batch needs no padding; prediction sees
all of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseq.data.mil import MILBatch
from medseq.models.mil_abmil import ABMIL
from medseq.models.mil_clam import CLAM
from medseq.models.mil_fitted import FittedMIL
from medseq.models.mil_mamba import MambaMIL
from medseq.models.mil_pooling import LinearProbe, PoolingMIL
from medseq.models.mil_transmil import TransMIL
from medseq.nn.mamba import BiMamba, Mamba
from medseq.nn.rwkv import ReWKVSequenceMixer
from medseq.nn.srmamba import SRMamba
from medseq.tasks.mil_loss import MILLoss, class_probabilities

__all__ = ["HEADS", "Recipe", "pooled", "predict_head"]


@dataclass(frozen=True)
class Recipe:
    """How a head is trained."""

    width: int = 64
    dropout: float = 0.5
    feature_dropout: float = 0.0
    epochs: int = 20
    batch: int = 26
    lr: float = 1e-3
    weight_decay: float = 0.01
    instances: int = 20
    compress: bool = True


def _mamba(mixer: Callable[..., nn.Module], d: int, recipe: Recipe, **options: Any) -> nn.Module:
    return MambaMIL(
        in_dim=d,
        d_model=recipe.width,
        num_layers=1,
        mixer=partial(mixer, **options),
        dropout=recipe.dropout,
        attention_dim=32,
    )


_SCAN = {"d_state": 8, "expand": 1}
# Name -> (feature width, recipe) -> network.
HEADS: dict[str, Callable[[int, Recipe], nn.Module]] = {
    "MambaMIL, Mamba": lambda d, r: _mamba(Mamba, d, r, **_SCAN),
    "MambaMIL, BiMamba": lambda d, r: _mamba(BiMamba, d, r, **_SCAN),
    "MambaMIL, SRMamba": lambda d, r: _mamba(SRMamba, d, r, rate=5, **_SCAN),
    "MambaMIL, ReWKV": lambda d, r: _mamba(ReWKVSequenceMixer, d, r),
    "ABMIL": lambda d, r: ABMIL(in_dim=d, d_model=r.width, attention_dim=32, dropout=r.dropout),
    "CLAM-SB": lambda d, r: CLAM(in_dim=d, d_model=r.width, attention_dim=32, dropout=r.dropout),
    "TransMIL": lambda d, r: TransMIL(in_dim=d, d_model=r.width, heads=4, dropout=r.dropout),
    "mean pooling": lambda d, r: PoolingMIL(in_dim=d, pool="mean", d_model=r.width, dropout=r.dropout),
    "max pooling": lambda d, r: PoolingMIL(in_dim=d, pool="max", d_model=r.width, dropout=r.dropout),
    "mean+max pooling": lambda d, r: PoolingMIL(in_dim=d, pool="mean+max", d_model=r.width, dropout=r.dropout),
    "linear probe, mean+max": lambda d, r: LinearProbe(in_dim=d, pool="mean+max"),
}


def predict_head(
    head: str,
    recipe: Recipe,
    bags: Sequence[np.ndarray],
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Train on some bags, and return the probability of class 1 for others."""
    tensors = [torch.from_numpy(bag) for bag in bags]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        width = bags[0].shape[1]
        net = FittedMIL(HEADS[head](width, recipe), width, 1, rank=1, compress=recipe.compress)
        net.fit_features(tensors[i] for i in train)
        _train(net, recipe, [net.standardised(tensors[i]) for i in train], labels[train], head)
        net.eval()
        with torch.no_grad():
            logits = torch.cat([net(tensors[i]).logits for i in test])
    return class_probabilities(logits, "class")[:, 1].double().numpy()


def _train(net: FittedMIL, recipe: Recipe, bags: list[Tensor], labels: np.ndarray, head: str) -> None:
    """AdamW, cosine decay to 0, gradients clipped to norm 1; CLAM with its instance loss."""
    loss = MILLoss(instance_weight=0.3 if head.startswith("CLAM") else 0.0)
    optimizer = torch.optim.AdamW(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    steps = recipe.epochs * math.ceil(len(bags) / recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    truth = torch.from_numpy(labels)
    net.train()
    for _ in range(recipe.epochs):
        for chosen in torch.randperm(len(bags)).split(recipe.batch):
            features = torch.stack([_drawn(bags[i], recipe.instances) for i in chosen.tolist()])
            features = nn.functional.dropout(features, recipe.feature_dropout)
            lengths = torch.full((len(chosen),), recipe.instances)
            batch = MILBatch(features, lengths, None, truth[chosen], None, None, [])
            optimizer.zero_grad()
            loss(net.net(features, None, lengths), batch).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def _drawn(bag: Tensor, instances: int) -> Tensor:
    """So many instances in their order: each at most once if there are enough, else some more often."""
    n = len(bag)
    picks = torch.randperm(n)[:instances] if n >= instances else torch.randint(n, (instances,))
    return bag[picks.sort().values]


def pooled(
    compress: bool, C: float, bags: Sequence[np.ndarray], labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """The baseline: mean and maximum of every feature, standardised, then logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if compress:
        bags = [np.sign(bag) * np.log1p(np.abs(bag)) for bag in bags]
    pools = np.stack([np.concatenate([bag.mean(0), bag.max(0)]) for bag in bags]).astype(np.float64)
    scaler = StandardScaler().fit(pools[train])
    model = LogisticRegression(C=C, max_iter=10_000).fit(scaler.transform(pools[train]), labels[train])
    return model.predict_proba(scaler.transform(pools[test]))[:, 1]
