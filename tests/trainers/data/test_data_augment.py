import hashlib
from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional as v2

from spaces.errors import BadInput
from trainers.data import AUGMENTATIONS
from trainers.data.augment import augment, boxes, factors


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


@pytest.mark.parametrize("policy", [policy for policy in AUGMENTATIONS if policy != "none"])
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
    message = r"^augmentation must be one of none, color, flip, .*, crop_flip, .*, but got 'mixup'$"
    with pytest.raises(BadInput, match=message):
        augment(images(1, 1, 8, 8), "mixup", seeded())


@pytest.mark.parametrize("shape", [(8, 1, 8, 8), (8, 3, 17, 24), (8, 3, 64, 48)], ids=str)
def test_a_resized_crop_is_torchvisions_of_each_image(shape: tuple[int, int, int, int]) -> None:
    batch, (H, W) = images(*shape), shape[2:]
    drawn = boxes(len(batch), H, W, seeded()).int().T.tolist()
    assert len({tuple(box) for box in drawn}) > 5
    for image, result, box in zip(batch, augment(batch, "resized_crop", seeded()), drawn, strict=True):
        expected = v2.resized_crop(image, *box, size=[H, W], antialias=True)
        torch.testing.assert_close(result, expected, rtol=0.0, atol=1e-4)  # float32 places in a row of 64 pixels


def test_the_parts_are_drawn_as_torchvision_draws_them() -> None:
    """Of square images. Of others, theirs are as if the image were square: all would be stretched to its shape."""
    H, W, count = 48, 48, 4000
    torch.manual_seed(0)
    image = torch.zeros(1, H, W)
    draw = transforms.RandomResizedCrop.get_params
    theirs = torch.tensor([draw(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]).double().T
    ours = boxes(count, H, W, seeded())
    for box in (ours, theirs):
        top, left, h, w = box
        assert bool(((h >= 1) & (w >= 1) & (top >= 0) & (left >= 0) & (top + h <= H) & (left + w <= W)).all())

    def numbers(box: Tensor) -> Tensor:
        top, left, h, w = box
        return torch.stack([h * w / (H * W), (w / h).log(), top / H, left / W])

    for mine, other in zip(numbers(ours), numbers(theirs), strict=True):
        error = ((mine.var() + other.var()) / count).sqrt()
        assert abs(float(mine.mean() - other.mean())) < 4 * error
        assert float(mine.std() / other.std()) == pytest.approx(1.0, abs=0.05)
    oblong = boxes(count, H, 3 * W, seeded())
    same = oblong[2] == ours[2]  # but where rounding to pixels decides whether a part lies within
    assert float(same.float().mean()) > 0.98
    assert float((oblong[3] / 3 - ours[3])[same].abs().quantile(0.99)) <= 1.0


@pytest.mark.parametrize("sides", [(1, 40), (40, 1), (1, 1), (2, 3)], ids=str)
def test_there_is_a_part_of_any_image(sides: tuple[int, int]) -> None:
    top, left, h, w = boxes(200, *sides, seeded())
    assert bool(((h >= 1) & (w >= 1) & (top >= 0) & (left >= 0) & (top + h <= sides[0]) & (left + w <= sides[1])).all())
    result = augment(images(4, 1, *sides), "resized_crop", seeded())
    assert bool(result.isfinite().all())


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_changed_as_torchvision_changes_those_of_each_image(channels: int) -> None:
    batch = images(16, channels, 9, 7)
    drawn = factors(len(batch), seeded())
    assert bool(((drawn > 0.6) & (drawn < 1.4)).all())
    assert float(drawn.std()) > 0.15
    for image, result, each in zip(batch, augment(batch, "color", seeded()), drawn.T.tolist(), strict=True):
        expected = v2.adjust_contrast(v2.adjust_brightness(image, each[0]), each[1])
        if channels == 3:
            expected = v2.adjust_saturation(expected, each[2])
        torch.testing.assert_close(result, expected, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("policy", ["resized_crop", "color", "resized_crop_flip_color"])
def test_images_of_a_batch_are_varied_each_by_itself(policy: str) -> None:
    result = augment(images(1, 3, 16, 16).expand(20, 3, 16, 16), policy, seeded())
    assert len({image.numpy().tobytes() for image in result}) == 20


def test_steps_follow_each_other_in_one_order() -> None:
    batch, one, other = images(6, 3, 16, 16), seeded(), seeded()
    expected = batch
    for step in ("resized_crop", "flip", "color"):
        expected = augment(expected, step, one)
    assert torch.equal(augment(batch, "resized_crop_flip_color", other), expected)
    assert torch.equal(one.get_state(), other.get_state())


def test_what_was_there_before_is_as_it_was_to_the_bit() -> None:
    """What studies were trained on: a digest of the pixels that an earlier Dux made."""
    batch = torch.arange(4 * 3 * 16 * 16).view(4, 3, 16, 16).remainder(251) / 250
    digests = {
        policy: hashlib.sha256(augment(batch, policy, seeded(7)).numpy().tobytes()).hexdigest()[:16]
        for policy in ("crop", "crop_flip")
    }
    assert digests == {"crop": "d9a1d608b4354bae", "crop_flip": "a9d99dd02e541973"}
