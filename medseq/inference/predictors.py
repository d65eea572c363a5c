"""Which predictor a bundle needs: the seam for tasks. Torch is imported when one is built."""

from typing import Any

from medseq.inference.bundle import Bundle
from medseq.inference.predictor import Predictor

__all__ = ["predictor_for"]


def predictor_for(bundle: Bundle, device: str, params: dict[str, Any]) -> Predictor:
    """The predictor of a bundle's task.

    Args:
        bundle: A loaded bundle.
        device: Where the model runs.
        params: Effective parameters (`medseq.inference.params.resolve_params`).
    """
    not_its = ("names", "modality", "resample", "blend", "sens_maps")
    words = {key: value for key, value in params.items() if key not in not_its}
    if bundle.config.task == "mil":
        from medseq.inference.mil import MILPredictor

        return MILPredictor(bundle, device, **words)
    if bundle.config.task == "recon":
        from medseq.inference.recon import ReconPredictor

        return ReconPredictor(bundle, device, **words)
    from medseq.inference.restore import RestorePredictor

    if words["tile"] is not None:
        words["tile"] = tuple(words["tile"])
    return RestorePredictor(bundle, device, **words)
