import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.data import Dataset, Split, pixels, shared_tensor


def make(seed: int = 0, channels: int = 3, n: int = 40) -> Dataset:
    generator = torch.Generator().manual_seed(seed)

    def split(size: int) -> Split:
        images = torch.randint(256, (size, channels, 6, 5), generator=generator, dtype=torch.uint8)
        return Split(images, torch.randint(4, (size,), generator=generator))

    return Dataset("made", tuple("abcd"), split(n), split(10), split(12))


def test_the_shape_of_images_is_channels_height_width() -> None:
    dataset = make()
    assert dataset.image_shape == (3, 6, 5)
    assert (dataset.channels, dataset.height, dataset.width) == (3, 6, 5)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (40, 10, 12)


def test_pixels_maps_every_grey_level_to_its_share_of_255_and_leaves_the_bytes_alone() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    result = pixels(levels)
    assert result.dtype == torch.float32
    assert torch.equal(result.flatten(), torch.tensor([v / 255 for v in range(256)]))
    assert torch.equal(levels.flatten(), torch.arange(256, dtype=torch.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_are_those_of_the_train_pixels(channels: int) -> None:
    dataset = make(channels=channels)
    mean, std = dataset.mean_std()
    share = dataset.train.images.numpy().astype(np.float64) / 255
    assert mean.dtype == std.dtype == torch.float32
    assert mean.shape == std.shape == (channels,)
    # 1e-7 is float32's rounding of numbers below 1; both sides are computed in float64
    np.testing.assert_allclose(mean.numpy(), share.mean(axis=(0, 2, 3)), rtol=0, atol=1e-7)
    np.testing.assert_allclose(std.numpy(), share.std(axis=(0, 2, 3)), rtol=0, atol=1e-7)


def test_mean_and_deviation_of_two_grey_levels_can_be_worked_out_by_eye() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    split = Split(images, torch.tensor([0, 1]))
    mean, std = Dataset("two", ("a", "b"), split, split, split).mean_std()
    assert mean.tolist() == [0.5]
    assert std.tolist() == [0.5]


def test_a_channel_that_never_varies_can_still_be_divided_by_its_deviation() -> None:
    split = Split(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    mean, std = Dataset("flat", ("a",), split, split, split).mean_std()
    assert torch.equal((pixels(split.images) - mean) / std, torch.zeros(3, 1, 2, 2))


def test_arrays_share_the_memory_of_the_tensors() -> None:
    dataset = make()
    arrays = dataset.arrays()
    assert set(arrays) == {f"{s}.{f}" for s in ("train", "validation", "test") for f in ("images", "labels")}
    assert arrays["train.images"].ctypes.data == dataset.train.images.data_ptr()
    assert arrays["test.labels"].ctypes.data == dataset.test.labels.data_ptr()


def test_a_data_set_comes_back_from_read_only_arrays_equal_and_on_their_memory_without_a_warning() -> None:
    dataset = make()
    arrays = {key: array.copy() for key, array in dataset.arrays().items()}
    for array in arrays.values():
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = Dataset.from_arrays("made", tuple("abcd"), arrays)
    assert (back.name, back.classes, back.image_shape) == ("made", 4, (3, 6, 5))
    for which in ("train", "validation", "test"):
        old, new = getattr(dataset, which), getattr(back, which)
        assert torch.equal(old.images, new.images)
        assert torch.equal(old.labels, new.labels)
        assert new.images.data_ptr() == arrays[f"{which}.images"].ctypes.data
        assert new.labels.data_ptr() == arrays[f"{which}.labels"].ctypes.data


def test_a_shared_tensor_sees_a_file_mapped_read_only(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(3, 4))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = shared_tensor(mapped)
    assert tensor.data_ptr() == mapped.ctypes.data
    assert torch.equal(tensor, torch.arange(12.0, dtype=torch.float64).reshape(3, 4))


def test_a_shared_tensor_and_its_array_are_one_memory() -> None:
    array = np.zeros(3)
    tensor = shared_tensor(array)
    array[1] = 5
    assert tensor.tolist() == [0, 5, 0]


def test_images_must_be_four_dimensional_bytes() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\) uint8, but are \(2, 1, 3, 3\) torch.float32"):
        Split(torch.zeros(2, 1, 3, 3), labels)
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\) uint8, but are \(2, 3, 3\) torch.uint8"):
        Split(torch.zeros(2, 3, 3, dtype=torch.uint8), labels)


def test_labels_must_be_one_whole_number_for_each_image() -> None:
    images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"labels must be \(2,\) int64, but are \(3,\) torch.int64"):
        Split(images, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be \(2,\) int64, but are \(2,\) torch.int32"):
        Split(images, torch.zeros(2, dtype=torch.int32))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    images = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    good, bad = Split(images, torch.tensor([0])), Split(images, torch.tensor([label]))
    with pytest.raises(ValueError, match=r"labels of made must be in 0\.\.1"):
        Dataset("made", ("a", "b"), good, good, bad)


def test_splits_of_unlike_image_shape_are_refused() -> None:
    small = Split(torch.zeros(1, 1, 3, 3, dtype=torch.uint8), torch.tensor([0]))
    large = Split(torch.zeros(1, 1, 4, 3, dtype=torch.uint8), torch.tensor([0]))
    message = r"all splits of made must hold .* one shape, but train has \(1, 3, 3\) and another \(1, 4, 3\)"
    with pytest.raises(ValueError, match=message):
        Dataset("made", ("a", "b"), small, large, small)
