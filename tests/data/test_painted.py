"""Painted tiles: what they are told to hold is there for a colour deconvolution of somebody else."""

import numpy as np
from skimage.color import rgb2hed

from medseq.data.painted import painted_tiles


def test_crowded_tiles_hold_more_haematoxylin(seed):
    rng = np.random.default_rng(seed)
    amounts = [[rgb2hed(tile)[..., 0].mean() for tile in painted_tiles(6, dense, rng)] for dense in (False, True)]
    assert np.median(amounts[1]) > 1.5 * np.median(amounts[0])


def test_the_generator_alone_decides(seed):
    first, again = (painted_tiles(2, True, np.random.default_rng(seed), side=64) for _ in range(2))
    assert first.shape == (2, 64, 64, 3)
    assert (first == again).all()
    assert not (first[0] == first[1]).all()
