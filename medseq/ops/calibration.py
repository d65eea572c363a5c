"""Temperature and threshold of a classifier, fitted to validation cases and to nothing else; no torch."""

import numpy as np
from jaxtyping import Float, Int

from medseq.errors import InputError

__all__ = ["at_temperature", "fit_temperature", "fit_threshold"]

# Beyond these a probability says nothing any more, or says everything.
_RANGE = (0.05, 20.0)


def at_temperature(probability: Float[np.ndarray, "case class"], temperature: float) -> Float[np.ndarray, "case class"]:
    """Probabilities as a model would give them with its logits divided by `temperature`: ``p^(1/T)``, renormalised.

    For a softmax the two are the same, since a softmax forgets what is common to all logits; here it also works for
    means of several bags, and for the ordinal head.
    """
    logits = np.log(np.clip(probability, 1e-12, None)) / temperature
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def fit_temperature(label: Int[np.ndarray, " case"], probability: Float[np.ndarray, "case class"]) -> float:
    """Temperature, 0.05 to 20, with the least negative log-likelihood: larger than 1 if the model is too sure.

    One imaginary case of every class is added (Laplace's rule of succession), which keeps the model from being made
    certain where a handful of validation cases happen to be separated without a mistake.

    Raises:
        InputError: No case.

    Reference:
        Guo et al., On calibration of modern neural networks, arXiv:1706.04599, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    label = np.asarray(label, int)
    if not len(label):
        raise InputError("no case to fit a temperature to")
    classes = probability.shape[1]
    smooth = np.eye(classes)[label]
    # The imaginary cases have no probability of their own: they are spread over the real ones.
    smooth = (len(label) * smooth + 1.0) / (len(label) + classes)

    def loss(log_t: float) -> float:
        return float(-np.mean(smooth * np.log(at_temperature(probability, float(np.exp(log_t))).clip(1e-12))))

    return float(np.exp(minimize_scalar(loss, bounds=tuple(np.log(_RANGE)), method="bounded").x))


def fit_threshold(label: Int[np.ndarray, " case"], probability: Float[np.ndarray, " case"]) -> float:
    """Threshold on the probability of class 1 with the largest balanced accuracy; of several, the nearest to a half.

    A case is called 1 if its probability is at least the threshold. Candidates lie in the middle between neighbours.

    Raises:
        InputError: One class only.

    Reference:
        Youden, Index for rating diagnostic tests, Cancer 3(1), 1950.
    """
    label, probability = np.asarray(label, int), np.asarray(probability, float)
    positive, negative = probability[label == 1], probability[label == 0]
    if not len(positive) or not len(negative):
        raise InputError(
            "a threshold needs validation cases of both classes",
            found=f"{len(positive)} of class 1, {len(negative)} of class 0",
        )
    known = np.unique(probability)
    candidates = np.append((known[1:] + known[:-1]) / 2, 0.5)
    index = [np.mean(positive >= t) + np.mean(negative < t) for t in candidates]
    best = candidates[np.isclose(index, max(index))]
    return float(best[np.argmin(np.abs(best - 0.5))])
