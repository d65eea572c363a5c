"""A model of bags together with what it must know of the bags it was trained on.

Raw patch features have any scale, and a bag of another kind gets a score as sure as any. So two sets of numbers are
fitted to the training bags and travel with the weights: mean and spread of every feature, and of the pooled embedding.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseq.errors import InputError, ShapeError
from medseq.models.mil_pooling import LinearProbe
from medseq.nn.mil import Bags, MILOutput
from medseq.ops.mahalanobis import Spread, fit_spread

__all__ = ["FittedMIL"]


class FittedMIL(nn.Module):
    """Any model of bags, behind standardised features, with a distance from its training bags.

    Until `fit_features` was called features pass as they are, and until `fit_embeddings` was called there is no
    distance; `medseq.tasks.mil` calls both.

    Args:
        net: The model of bags.
        feature_dim: Width of the features.
        embedding_dim: Width of the model's pooled embedding.
        rank: Axes in which the spread of embeddings is kept.
        standardise: Bring features to mean 0 and spread 1; False passes them as they are, as the papers' codes do.
        compress: Features pass ``sign(x) log(1 + |x|)`` first: for histogram counts and other long tails.
    """

    feature_mean: Tensor
    feature_sd: Tensor
    embedding_mean: Tensor
    embedding_axes: Tensor
    embedding_variance: Tensor
    embedding_residual: Tensor
    distance_limit: Tensor

    def __init__(
        self,
        net: nn.Module,
        feature_dim: int,
        embedding_dim: int,
        rank: int = 32,
        standardise: bool = True,
        compress: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.feature_dim, self.embedding_dim = net, feature_dim, embedding_dim
        self.rank, self.standardise, self.compress = rank, standardise, compress
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        # 0 says: not fitted yet.
        self.register_buffer("feature_sd", torch.zeros(feature_dim))
        self.register_buffer("embedding_mean", torch.zeros(embedding_dim))
        self.register_buffer("embedding_axes", torch.zeros(rank, embedding_dim))
        self.register_buffer("embedding_variance", torch.ones(rank))
        self.register_buffer("embedding_residual", torch.ones(()))
        self.register_buffer("distance_limit", torch.zeros(()))

    @property
    def knows_features(self) -> bool:
        """Whether `fit_features` was called, or its result loaded."""
        return bool((self.feature_sd > 0).any())

    @property
    def knows_embeddings(self) -> bool:
        """Whether `fit_embeddings` was called, or its result loaded."""
        return bool(self.distance_limit > 0)

    def forward(self, features: Tensor, coords: Tensor | None = None, lengths: Tensor | None = None) -> MILOutput:
        """Scores of bags; see `medseq.nn.mil`."""
        bags = Bags.of(features, self.feature_dim, coords, lengths)
        return self.net(self.standardised(bags.features), bags.coords, lengths)

    def standardised(self, features: Float[Tensor, "*bag d"]) -> Float[Tensor, "*bag d"]:
        """Features in units of their spread over the training patches; a feature that never varied is 0."""
        if self.compress:
            features = features.sign() * features.abs().log1p()
        if not self.standardise:
            return features
        varies = self.feature_sd > 0
        scale = torch.where(varies, self.feature_sd, torch.ones_like(self.feature_sd))
        # No branch on values, which an exported graph cannot have: not fitted yet means that nothing varies.
        constant = torch.where(varies.any(), torch.zeros_like(features), features)
        return torch.where(varies, (features - self.feature_mean) / scale, constant)

    def distance(self, embedding: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """Mahalanobis distance of pooled embeddings from those of the training bags; foreign above `distance_limit`.

        Raises:
            InputError: `fit_embeddings` was not called.
        """
        if not self.knows_embeddings:
            raise InputError("the model does not know its training bags", remedy="call fit_embeddings after training")
        return torch.from_numpy(self.spread.distance(embedding.detach().cpu().double().numpy())).to(embedding)

    @property
    def spread(self) -> Spread:
        """Mean and covariance of the embeddings of the training bags."""
        parts = (self.embedding_mean, self.embedding_axes, self.embedding_variance)
        mean, axes, variance = (part.detach().cpu().double().numpy() for part in parts)
        return Spread(mean, axes, variance, float(self.embedding_residual))

    def fit_features(self, bags: Iterable[Float[Tensor, "n d"]]) -> None:
        """Take mean and standard deviation of every feature over all patches of the training bags, bag by bag.

        Raises:
            ShapeError: Features of another width.
            InputError: Features that are not finite, or none.
        """
        n, total, squares = 0, torch.zeros(self.feature_dim).double(), torch.zeros(self.feature_dim).double()
        for bag in bags:
            if bag.shape[-1] != self.feature_dim:
                raise ShapeError("features do not fit the model", found=bag.shape[-1], wanted=self.feature_dim)
            x = bag.double().cpu()
            if self.compress:
                x = x.sign() * x.abs().log1p()
            n, total, squares = n + len(x), total + x.sum(0), squares + x.square().sum(0)
        if not n or not torch.isfinite(squares).all():
            raise InputError("features cannot be standardised", found=f"{n} patches, not all finite" if n else "none")
        mean = total / n
        variance = (squares / n - mean.square()).clamp_min(0)
        # What differs by rounding only does not vary.
        variance[variance <= 1e-10 * (squares / n)] = 0
        self.feature_mean.copy_(mean)
        self.feature_sd.copy_(variance.sqrt())

    def fit_embeddings(
        self, training: Float[np.ndarray, "bag width"], held_out: Float[np.ndarray, "bag width"]
    ) -> None:
        """Take the spread of the training bags' embeddings, and the largest distance that other bags have.

        Training bags are nearer than new ones of the same kind, because the network was fitted to them: so the limit is
        the 99 % quantile of the distances of bags it was not trained on, and with fewer than 100 the largest of them.

        Raises:
            ShapeError: Embeddings of another width.
            InputError: No bag that was held out, or training bags that do not differ.
        """
        if training.shape[1] != self.embedding_dim:
            raise ShapeError("embedding_dim is not the model's", found=self.embedding_dim, wanted=training.shape[1])
        if not len(held_out):
            raise InputError("the limit of the distance needs bags that were held out of the training")
        spread = fit_spread(training, self.rank)
        self.embedding_mean.copy_(torch.from_numpy(spread.mean))
        self.embedding_axes.copy_(torch.from_numpy(spread.axes))
        self.embedding_variance.copy_(torch.from_numpy(spread.variance))
        self.embedding_residual.fill_(spread.residual)
        self.distance_limit.fill_(float(np.quantile(self.spread.distance(held_out), 0.99, method="higher")))


def tiny() -> dict[str, nn.Module]:
    """Small instances, for tests."""
    return {
        "plain": FittedMIL(LinearProbe(in_dim=12), feature_dim=12, embedding_dim=12, rank=4),
        "compressed": FittedMIL(LinearProbe(in_dim=12, pool="max"), feature_dim=12, embedding_dim=12, compress=True),
    }


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    return {"features": torch.randn(2, 11, 12), "lengths": torch.tensor([11, 7])}
