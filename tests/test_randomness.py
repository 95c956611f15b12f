import torch

from tricklab.randomness import Rand, derive, generator, seed_default


def test_streams_are_apart_and_repeat():
    seeds = [
        derive(seed, purpose, *c)
        for seed in (0, 1)
        for purpose in ("mix", "order")
        for c in ((), (0, 1), (1, 0))
    ]
    assert len(set(seeds)) == len(seeds)
    assert derive(3, "mix", 4, 5) == derive(3, "mix", 4, 5)
    assert all(0 <= s < 2**63 for s in seeds)


def test_seed_default_is_what_layers_use():
    drop = torch.nn.Dropout(0.5)
    seed_default(0, "dropout", 3)
    first = drop(torch.ones(100))
    seed_default(0, "dropout", 4)
    other = drop(torch.ones(100))
    seed_default(0, "dropout", 3)
    assert torch.equal(drop(torch.ones(100)), first)
    assert not torch.equal(other, first)


def test_ranks_share_the_numbers_of_the_global_batch():
    whole = Rand(generator(0, "augment"), 35)(2)
    parts = [Rand(generator(0, "augment"), 35, rank, 3)(2) for rank in range(3)]
    assert [len(p) for p in parts] == [12, 12, 11]
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[rank::3])
