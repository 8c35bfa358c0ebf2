"""The embedded digits."""

import torch

from sde_diffusion.data import DATASETS


def test_sizes_levels_and_split() -> None:
    from sklearn.datasets import load_digits

    train, test = (DATASETS["digits"]().load(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1500, 297)
    assert train.spec.shape == (1, 8, 8)
    assert train.spec.levels == 17
    values, labels = test.fetch(torch.arange(297))
    assert labels is not None
    assert torch.equal(values.squeeze(1).double(), torch.from_numpy(load_digits().images[1500:]))
    assert labels.tolist() == load_digits().target[1500:].tolist()
    assert int(values.max()) == 16
