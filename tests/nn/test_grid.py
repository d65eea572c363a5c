"""Slide grids: where patches lie, and what is refused."""

import pytest
import torch

from medseq.errors import InputError, ShapeError
from medseq.nn.grid import SlideGrid, patch_distance


def test_cells_are_the_rounded_places(draw):
    # Patches of 512 pixels, cut a few pixels off the grid; the first lies in the second column.
    coords = torch.tensor([[1536, 1030], [1020, 1030], [2050, 1548], [1030, 2040]])
    grid = SlideGrid.of(draw(1, 4, 3), coords, 512)
    assert (grid.rows, grid.cols) == (3, 3)
    assert grid.cells.tolist() == [[1, 0, 5, 6]]
    assert grid.mask.int().tolist() == [[[1, 1, 0], [0, 0, 1], [1, 0, 0]]]
    assert not grid.is_full


def test_scatter_and_gather_are_inverse_and_holes_are_zero(draw):
    x = draw(2, 6, 3)
    coords = torch.stack(
        [torch.stack([torch.randperm(5)[[0, 1, 2, 3, 4, 0]], torch.tensor([0, 1, 2, 3, 4, 5])], 1)] * 2
    )
    grid = SlideGrid.of(x, coords * 256, 256)
    image = grid.scatter(x)
    assert image.shape == (2, 3, grid.rows, grid.cols)
    assert torch.equal(grid.gather(image), x)
    assert torch.equal((image != 0).any(1), grid.mask)
    assert grid.mask.sum() == 12


def test_items_of_a_batch_have_their_own_origin_and_distance(draw):
    coords = torch.tensor([[[7, 7], [263, 7], [7, 263]], [[5000, 100], [5000, 1124], [6024, 100]]])
    grid = SlideGrid.of(draw(2, 3, 1), coords)
    assert grid.cells.tolist() == [[0, 1, 2], [0, 2, 1]]


def test_without_places_tokens_fill_a_square(draw):
    for length, shape in ((1, (1, 1)), (4, (2, 2)), (5, (2, 3)), (7, (3, 3)), (100, (10, 10))):
        grid = SlideGrid.square(draw(1, length, 2))
        assert (grid.rows, grid.cols) == shape
        assert grid.cells.tolist() == [list(range(length))]
        assert grid.is_full == (length == shape[0] * shape[1])


def test_distance_is_that_of_neighbours_though_pieces_of_tissue_are_offset():
    one = torch.cartesian_prod(torch.arange(5), torch.arange(4)) * 448
    two = torch.cartesian_prod(torch.arange(3), torch.arange(3)) * 448 + torch.tensor([9013, 37])
    assert patch_distance(torch.cat([one, two]).double()) == 448
    assert patch_distance(torch.zeros(1, 2).double()) == 1
    with pytest.raises(InputError, match="no two patches lie in one row or column; pass patch_size_level0"):
        patch_distance(torch.tensor([[0.0, 0.0], [3.0, 5.0]]))


def test_two_patches_in_a_cell_are_named(draw):
    coords = torch.tensor([[0, 0], [512, 0], [0, 512], [560, 20]])
    complaint = r"item 0: two patches lie in one cell.*patches 1 and 3 at \(512, 0\), \(560, 20\)"
    with pytest.raises(InputError, match=complaint):
        SlideGrid.of(draw(1, 4, 2), coords, 512)


def test_bad_coordinates_are_refused(draw):
    x = draw(1, 3, 2)
    with pytest.raises(ShapeError, match=r"coords \(1, 4, 2\), tokens \(1, 3, 2\)"):
        SlideGrid.of(x, torch.zeros(4, 2), 1)
    with pytest.raises(InputError, match="patch size \\(found 0, wanted > 0\\)"):
        SlideGrid.of(x, torch.zeros(3, 2), 0)
    with pytest.raises(
        InputError, match=r"far too large \(found 90001 x 90001 cells for 3 patches\); check patch_size"
    ):
        SlideGrid.of(x, torch.tensor([[0, 0], [90000, 0], [0, 90000]]), 1)


def test_few_patches_of_a_grid_never_share_a_cell(seed):
    # Seven of 25 places: the commonest distance is often two or three patches.
    generator = torch.Generator().manual_seed(seed)
    for _ in range(50):
        cells = torch.randperm(25, generator=generator)[:7]
        coords = 256 * torch.stack([cells % 5, cells // 5], 1)
        grid = SlideGrid.of(torch.zeros(1, 7, 1), coords)
        assert len(grid.cells.unique()) == 7
