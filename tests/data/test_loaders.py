"""Loaders: shares of processes, epochs, and a position that survives a checkpoint."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from medseq.data.loaders import ResumableLoader, ShareSampler
from medseq.data.restore import PhantomPairs, collate
from medseq.errors import InputError


def numbers(total):
    return TensorDataset(torch.arange(total))


def stacked(samples):
    return torch.stack([sample[0] for sample in samples])


def loader(total, batch_size=3, workers=0, **keywords):
    sampler = ShareSampler(numbers(total), **keywords)
    return ResumableLoader(sampler, batch_size, num_workers=workers, collate_fn=stacked)


@pytest.mark.parametrize("shuffle", [False, True])
def test_shares_of_validation_hold_every_case_once(seed, shuffle):
    rng = np.random.default_rng(seed)
    total, processes = int(rng.integers(5, 40)), int(rng.integers(1, 5))
    shares = [
        list(ShareSampler(numbers(total), processes, rank, repeat=False, shuffle=shuffle)) for rank in range(processes)
    ]
    assert sorted(sum(shares, [])) == list(range(total))
    assert [len(share) for share in shares] == [
        len(ShareSampler(numbers(total), processes, rank, repeat=False)) for rank in range(processes)
    ]


def test_shares_of_training_are_equally_long_and_leave_nothing_out(seed):
    rng = np.random.default_rng(seed)
    total, processes = int(rng.integers(5, 40)), int(rng.integers(2, 5))
    samplers = [ShareSampler(numbers(total), processes, rank, shuffle=True) for rank in range(processes)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    assert set(sum(shares, [])) == set(range(total))


def test_step_k_of_all_processes_is_step_k_of_one_with_their_batches_together():
    alone = list(loader(24, batch_size=6))
    first, second = (list(loader(24, batch_size=3, num_replicas=2, rank=rank)) for rank in range(2))
    for whole, *parts in zip(alone, first, second, strict=True):
        assert sorted(whole.tolist()) == sorted(torch.cat(parts).tolist())


def test_every_epoch_has_its_own_order_and_the_order_is_the_seed_s():
    sampler = ShareSampler(numbers(20), shuffle=True, seed=4)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("total", [18, 20])
def test_a_loaded_position_goes_on_with_the_next_batch(seed, workers, total):
    whole = [batch.tolist() for batch in loader(total, shuffle=True)]
    stop = int(np.random.default_rng(seed).integers(1, len(whole)))
    running = loader(total, shuffle=True, workers=workers)
    seen = iter(running)
    first = [next(seen).tolist() for _ in range(stop)]
    state = running.state_dict()
    fresh = loader(total, shuffle=True, workers=workers)
    fresh.load_state_dict(state)
    assert len(fresh) == len(whole)
    assert first + [batch.tolist() for batch in fresh] == whole
    # Only the epoch that was interrupted is shorter.
    assert [batch.tolist() for batch in fresh] == whole


def test_after_the_last_batch_comes_a_whole_epoch():
    running = loader(9)
    whole = [batch.tolist() for batch in running]
    fresh = loader(9)
    fresh.load_state_dict(running.state_dict())
    assert [batch.tolist() for batch in fresh] == whole


def test_another_batch_size_is_refused():
    with pytest.raises(InputError, match="own batch size"):
        loader(9, batch_size=2).load_state_dict(loader(9).state_dict())


def test_fewer_samples_than_processes_are_refused():
    with pytest.raises(InputError, match="fewer samples than processes"):
        ShareSampler(numbers(2), 3, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_draws_nothing_from_the_global_generator(workers):
    before = torch.get_rng_state()
    sampler = ShareSampler(PhantomPairs(4, crop=8))
    list(ResumableLoader(sampler, 2, num_workers=workers, collate_fn=collate))
    assert torch.equal(before, torch.get_rng_state())
