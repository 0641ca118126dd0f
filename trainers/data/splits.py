"""Fixed splits: they depend on the labels and on SEED, on nothing else, so that results of all studies compare."""

from dataclasses import replace

import numpy as np

from spaces.errors import BadInput
from trainers.data.dataset import Dataset, Split
from trainers.data.fetching import one_line

SEED = 0
VALIDATION_SHARE = 0.1  # of the train split, where a data set comes without a validation split
TEST_SHARE = 0.2  # of everything, where it comes without a test split


def split_off(whole: Split, taken: float, name: str) -> tuple[Split, Split]:
    """Parts `whole` into (rest, taken), each class in proportion, each part in an order drawn with SEED.

    Args:
        whole: N images.
        taken: how many to take: a share of N as a float (ceil(taken * N) images), or a number of images as an int.
        name: the data set, for the message.

    Raises:
        BadInput: if there are too few images to part each class.
    """
    import torch  # here, as the next one: they take seconds to import
    from sklearn.model_selection import train_test_split

    numbers, labels = np.arange(len(whole)), whole.labels.numpy()
    try:
        parts: list[np.ndarray] = train_test_split(numbers, test_size=taken, stratify=labels, random_state=SEED)
    except ValueError as error:  # scikit-learn knows the exact rule and says it
        raise BadInput(
            f"{name} must have enough images of each class to part them in two, but: {one_line(error)}; "
            "add images, or folders for the splits that are missing"
        ) from error
    rest, held_out = (torch.from_numpy(part) for part in parts)
    return Split(whole.images[rest], whole.labels[rest]), Split(whole.images[held_out], whole.labels[held_out])


def limit_train(dataset: Dataset, train_limit: int) -> Dataset:
    """The data set with `train_limit` of its train images, in the same proportions of classes; the rest is as it was.

    Raises:
        BadInput: if fewer images than classes would be on either side of the cut, or too few to part each class.
    """
    total, classes = len(dataset.train), dataset.classes
    if not classes <= train_limit <= total - classes:
        raise BadInput(
            f"{classes} <= task.train_limit <= {total - classes} must hold for {dataset.name} "
            f"({classes} classes, {total} train images), but got {train_limit}; leave it out to train on all"
        )
    train, _ = split_off(dataset.train, total - train_limit, dataset.name)
    return replace(dataset, train=train)
