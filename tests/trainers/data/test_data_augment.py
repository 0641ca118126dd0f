from collections import Counter

import pytest
import torch
from torch import Tensor

from spaces.errors import BadInput
from trainers.data import AUGMENTATIONS
from trainers.data.augment import augment


def images(B: int, C: int, H: int, W: int) -> Tensor:
    return torch.rand(B, C, H, W, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_candidates(image: Tensor, flips: tuple[bool, ...]) -> dict[tuple[int, int, bool], Tensor]:
    """Every result that one image may have, pixel by pixel: out[y, x] = image[y + dy, x' + dx], zero outside."""
    C, H, W = image.shape
    results = {}
    for dy in range(-(H // 8), H // 8 + 1):
        for dx in range(-(W // 8), W // 8 + 1):
            for flip in flips:
                out = torch.zeros(C, H, W)
                for y in range(H):
                    for x in range(W):
                        source = (W - 1 - x if flip else x) + dx
                        if 0 <= y + dy < H and 0 <= source < W:
                            out[:, y, x] = image[:, y + dy, source]
                results[dy, dx, flip] = out
    return results


@pytest.mark.parametrize(("policy", "flips"), [("crop", (False,)), ("crop_flip", (False, True))])
@pytest.mark.parametrize("shape", [(6, 1, 8, 8), (6, 3, 16, 24)], ids=["1x8x8", "3x16x24"])
def test_every_image_becomes_one_of_the_crops_that_a_slow_loop_makes(
    policy: str, flips: tuple[bool, ...], shape: tuple[int, int, int, int]
) -> None:
    batch = images(*shape)
    for image, result in zip(batch, augment(batch, policy, seeded()), strict=True):
        matching = [key for key, candidate in slow_candidates(image, flips).items() if torch.equal(candidate, result)]
        assert len(matching) == 1


@pytest.mark.parametrize(("policy", "ways"), [("crop", 9), ("crop_flip", 18)])
def test_every_place_and_direction_is_equally_likely(policy: str, ways: int) -> None:
    image = images(1, 1, 8, 8)
    count = 3600
    results = augment(image.expand(count, 1, 8, 8), policy, seeded())
    seen = Counter(result.numpy().tobytes() for result in results)
    flips = (False, True) if policy == "crop_flip" else (False,)
    assert set(seen) == {c.numpy().tobytes() for c in slow_candidates(image[0], flips).values()}
    assert len(seen) == ways
    expected = count / ways
    assert all(abs(n - expected) < 5 * expected**0.5 for n in seen.values())  # 5 standard deviations; the seed is fixed


@pytest.mark.parametrize(("side", "pad"), [(7, 0), (8, 1), (28, 3), (32, 4)])
def test_the_padding_is_an_eighth_of_the_side(side: int, pad: int) -> None:
    ones = torch.ones(400, 1, side, side)
    result = augment(ones, "crop", seeded())
    lost_rows = (result.sum(dim=(1, 3)) == 0).sum(dim=1)
    lost_columns = (result.sum(dim=(1, 2)) == 0).sum(dim=1)
    assert lost_rows.max() == lost_columns.max() == pad


def test_none_changes_nothing_and_draws_nothing() -> None:
    batch, generator = images(4, 3, 8, 8), seeded()
    state = generator.get_state()
    assert torch.equal(augment(batch, "none", generator), batch)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("policy", AUGMENTATIONS)
def test_the_same_generator_state_gives_the_same_images_whatever_the_global_seed(policy: str) -> None:
    batch = images(16, 3, 16, 16)
    torch.manual_seed(1)
    first = augment(batch, policy, seeded(5))
    torch.manual_seed(2)
    assert torch.equal(augment(batch, policy, seeded(5)), first)


@pytest.mark.parametrize("policy", ["crop", "crop_flip"])
def test_the_generator_moves_on_from_batch_to_batch(policy: str) -> None:
    batch, generator = images(16, 3, 16, 16), seeded()
    assert not torch.equal(augment(batch, policy, generator), augment(batch, policy, generator))


@pytest.mark.parametrize("policy", AUGMENTATIONS)
def test_the_images_given_stay_as_they_were(policy: str) -> None:
    batch = images(16, 3, 16, 16)
    before = batch.clone()
    result = augment(batch, policy, seeded())
    assert torch.equal(batch, before)
    assert (result.shape, result.dtype) == (batch.shape, batch.dtype)


@pytest.mark.parametrize("policy", AUGMENTATIONS)
def test_a_channels_last_batch_gives_the_same_images(policy: str) -> None:
    batch = images(8, 3, 16, 16)
    result = augment(batch.contiguous(memory_format=torch.channels_last), policy, seeded())
    assert torch.equal(result, augment(batch, policy, seeded()))


def test_an_unknown_policy_names_the_known_ones() -> None:
    message = r"^augmentation must be one of none, crop, crop_flip, but got 'mixup'$"
    with pytest.raises(BadInput, match=message):
        augment(images(1, 1, 8, 8), "mixup", seeded())
