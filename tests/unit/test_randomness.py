import torch

from tricklab.randomness import Rand, derive, generator, seed_default, to_normal


def test_derive_separates_streams_and_repeats():
    seeds = []
    for seed in (0, 1):
        for purpose in ("mix", "order"):
            seeds += [derive(seed, purpose, *counters) for counters in ((), (0, 1), (1, 0))]
    assert len(set(seeds)) == len(seeds)
    assert derive(3, "mix", 4, 5) == derive(3, "mix", 4, 5)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seed_default_determines_dropout():
    drop = torch.nn.Dropout(0.5)
    outputs = []
    for step in (3, 4, 3):
        seed_default(0, "dropout", step)
        outputs.append(drop(torch.ones(100)))
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])


def test_rand_of_a_rank_is_part_of_the_global_batch():
    whole = Rand(generator(0, "augment"), 35)(2)
    parts = [Rand(generator(0, "augment"), 35, rank, 3)(2) for rank in range(3)]
    assert [len(part) for part in parts] == [12, 12, 11]
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[rank::3])


def test_rand_is_float32_in_any_default_dtype():
    plain = Rand(generator(0, "augment"), 8)(2)
    torch.set_default_dtype(torch.double)
    try:
        assert torch.equal(Rand(generator(0, "augment"), 8)(2), plain)
    finally:
        torch.set_default_dtype(torch.float)


def test_to_normal_is_finite_and_normal():
    edges = torch.tensor([0, 2**-24, 0.5, 1 - 2**-24])  # the lowest and highest of torch.rand
    assert to_normal(*torch.cartesian_prod(edges, edges).T).isfinite().all()
    u, v = Rand(generator(0, "normal"), 20_000)(2).T
    uniform = torch.special.ndtr(to_normal(u, v).double()).sort()[0]
    assert (uniform - torch.linspace(0, 1, 20_000)).abs().max() < 0.014  # p < 0.001
