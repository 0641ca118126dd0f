"""Scikit-learn's handwritten digits (E. Alpaydin, C. Kaynak, UCI 1998): 1,797 grey images of 8x8, 10 classes.

They come with the library, so nothing is read from outside. There is no official split of these images (they are the
test half of a larger set); ours is 1,077 / 360 / 360.
"""

import numpy as np

from trainers.data.dataset import Dataset, Split
from trainers.data.splits import TEST_SHARE, split_off


def check() -> None:
    """Nothing can be missing."""


def load() -> Dataset:
    import torch  # here, as the next one: they take seconds to import
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from counts of 0..16 inked pixels
    whole = Split(torch.from_numpy(grey).unsqueeze(1), torch.from_numpy(digits.target.astype(np.int64)))
    rest, test = split_off(whole, TEST_SHARE, "digits")
    train, validation = split_off(rest, 0.25, "digits")  # a quarter of the rest: as many as in test
    names = tuple(str(digit) for digit in range(10))
    return Dataset("digits", names, train, validation, test, "counts of 0..16 inked pixels, times 255 / 16, rounded")
