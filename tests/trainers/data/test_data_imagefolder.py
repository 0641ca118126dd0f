import os
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from spaces.errors import BadInput
from trainers.data import check_dataset, load_dataset


def picture(split: str, label: int, i: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> np.ndarray:
    """The i-th image of a class, `size` is (width, height): random, (H, W) if mode is L and (H, W, 3) if it is RGB."""
    width, height = size
    rng = np.random.default_rng([len(split), label, i])
    return rng.integers(256, size=(height, width) if mode == "L" else (height, width, 3), dtype=np.uint8)


def fill(
    root: Path,
    split: str,
    each: int,
    *,
    classes: tuple[str, ...] = ("ant", "bee"),
    size: tuple[int, int] = (6, 5),
    mode: str = "RGB",
) -> None:
    for label, name in enumerate(classes):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(each):
            Image.fromarray(picture(split, label, i, size, mode)).save(folder / f"{i:03}.png")


def test_the_three_folders_are_the_three_splits(tmp_path: Path) -> None:
    for split, each in (("train", 6), ("val", 3), ("test", 4)):
        fill(tmp_path, split, each)
    check_dataset("imagefolder", root=tmp_path)
    dataset = load_dataset("imagefolder", root=tmp_path)
    assert (dataset.name, dataset.classes, dataset.image_shape) == ("imagefolder", 2, (3, 5, 6))
    for part, folder, each in ((dataset.train, "train", 6), (dataset.validation, "val", 3), (dataset.test, "test", 4)):
        assert part.labels.tolist() == [0] * each + [1] * each
        expected = [picture(folder, label, i) for label in (0, 1) for i in range(each)]
        np.testing.assert_array_equal(part.images.permute(0, 2, 3, 1), np.stack(expected))


def test_validation_may_be_spelt_out(tmp_path: Path) -> None:
    for split, each in (("train", 6), ("validation", 3), ("test", 4)):
        fill(tmp_path, split, each)
    assert len(load_dataset("imagefolder", root=tmp_path).validation) == 6


def rows(*splits: torch.Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for split in splits for image in split)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [([], (72, 8, 20)), (["val"], (80, 6, 20)), (["test"], (90, 10, 6)), (["val", "test"], (100, 6, 6))],
)
def test_what_has_no_folder_is_split_off_train_class_by_class(
    tmp_path: Path, given: list[str], sizes: tuple[int, int, int]
) -> None:
    fill(tmp_path, "train", 50)
    for split in given:
        fill(tmp_path, split, 3)
    dataset = load_dataset("imagefolder", root=tmp_path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == sizes
    for part in (dataset.train, dataset.validation, dataset.test):
        assert torch.bincount(part.labels).tolist() == [len(part) // 2] * 2
    everything = rows(dataset.train.images, dataset.validation.images, dataset.test.images)
    assert len(set(everything)) == len(everything) == 100 + 6 * len(given)


def test_the_same_call_gives_the_same_tensors(tmp_path: Path) -> None:
    fill(tmp_path, "train", 50)
    first = load_dataset("imagefolder", root=tmp_path).arrays()
    torch.manual_seed(9)
    np.random.seed(9)
    for key, array in load_dataset("imagefolder", root=tmp_path).arrays().items():
        np.testing.assert_array_equal(array, first[key])


def test_images_that_are_all_grey_have_one_channel(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2, mode="L")
    dataset = load_dataset("imagefolder", root=tmp_path)
    assert dataset.image_shape == (1, 5, 6)
    np.testing.assert_array_equal(dataset.train.images[0, 0], picture("train", 0, 0, mode="L"))


def test_one_coloured_image_makes_all_images_coloured(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2, mode="L")
    Image.fromarray(picture("test", 1, 9)).save(tmp_path / "test" / "bee" / "colour.png")
    dataset = load_dataset("imagefolder", root=tmp_path)
    assert dataset.image_shape == (3, 5, 6)
    assert torch.equal(dataset.train.images[:, 0], dataset.train.images[:, 2])


def test_black_and_white_and_transparent_greys_are_grey(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2, mode="L")
    stripes = np.tile(np.array([0, 255], np.uint8), (5, 3))
    Image.fromarray(stripes).convert("1").save(tmp_path / "train" / "ant" / "000.png")
    Image.new("LA", (6, 5), (40, 0)).save(tmp_path / "train" / "ant" / "001.png")
    dataset = load_dataset("imagefolder", root=tmp_path)
    assert (dataset.image_shape, dataset.colour) == ((1, 5, 6), "grey")
    np.testing.assert_array_equal(dataset.train.images[0, 0], stripes)
    assert dataset.train.images[1].unique().tolist() == [255]


def test_a_class_of_any_name_is_named_in_one_line(tmp_path: Path) -> None:
    fill(tmp_path, "train", 100)
    fill(tmp_path, "train", 4, classes=(os.fsdecode(b"caf\xe9\n"),))
    (note,) = (note for note in load_dataset("imagefolder", root=tmp_path).notes if "has no image of" in note)
    assert note == r"the validation split has no image of 1 of 3 classes: 'caf\udce9\n'"


def test_images_of_several_sizes_are_counted_and_named_with_the_way_out(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2)
    odd = tmp_path / "test" / "ant" / "odd.png"
    Image.fromarray(picture("test", 0, 9, size=(7, 5))).save(odd)
    message = (
        r"must be of one size \(width x height\), but are of 2: 6x5 \(12 images, train/ant/000.png\), "
        r"7x5 \(1 image, test/ant/odd.png\); set task.image_size to scale and crop them$"
    )
    with pytest.raises(BadInput, match=message):
        load_dataset("imagefolder", root=tmp_path)


def test_an_image_size_shrinks_the_shorter_side_and_cuts_the_middle_square_out(tmp_path: Path) -> None:
    """Left third black, middle white, right third black: of 24x8 at size 4, the white middle is left."""
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2, mode="L")
    stripes = np.zeros((8, 24), dtype=np.uint8)
    stripes[:, 8:16] = 255
    Image.fromarray(stripes).save(tmp_path / "train" / "ant" / "000.png")
    dataset = load_dataset("imagefolder", root=tmp_path, image_size=4)
    assert dataset.image_shape == (1, 4, 4)
    assert dataset.train.images[0, 0, :, 1:3].min() == 255  # the outer columns mix with black, as antialiasing does
    assert dataset.train.images[0, 0].float().mean() > 200


def test_an_image_size_that_the_images_have_already_changes_nothing(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2, size=(6, 6))
    plain, sized = load_dataset("imagefolder", root=tmp_path), load_dataset("imagefolder", root=tmp_path, image_size=6)
    assert torch.equal(plain.train.images, sized.train.images)


@pytest.mark.parametrize("size", [0, -3])
def test_an_image_size_below_one_is_refused(tmp_path: Path, size: int) -> None:
    fill(tmp_path, "train", 2)
    with pytest.raises(BadInput, match=rf"^task.image_size >= 1 must hold, but got {size}; leave it out to keep"):
        check_dataset("imagefolder", root=tmp_path, image_size=size)


def test_a_root_without_train_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "images", 2)
    message = (
        r"^task.root must hold train/CLASS/IMAGE .*, but .*train is not there; move the images, or correct task.root$"
    )
    with pytest.raises(BadInput, match=message):
        check_dataset("imagefolder", root=tmp_path)


def test_train_with_fewer_than_two_classes_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "train", 2, classes=("ant",))
    with pytest.raises(BadInput, match=r"with two classes or more, but .*train has 1; add folders to it$"):
        check_dataset("imagefolder", root=tmp_path)


def test_both_spellings_of_validation_at_once_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "validation"):
        fill(tmp_path, split, 2)
    with pytest.raises(
        BadInput, match=r"must not hold both val and validation; move the images of one into the other$"
    ):
        check_dataset("imagefolder", root=tmp_path)


@pytest.mark.parametrize("others", [("Train", "train"), ("testing", "Test")])
def test_two_spellings_of_a_split_at_once_are_refused(others: tuple[str, str], tmp_path: Path) -> None:
    for split in {"train", *others}:
        fill(tmp_path, split, 2)
    one, other = sorted(others)
    with pytest.raises(BadInput, match=rf"must not hold both {one} and {other}; move the images of one into the other"):
        check_dataset("imagefolder", root=tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("classes", [("ant",), ("ant", "bee", "cat"), ("ant", "cat")])
def test_splits_that_name_other_classes_than_train_are_refused(
    tmp_path: Path, split: str, classes: tuple[str, ...]
) -> None:
    fill(tmp_path, "train", 2)
    fill(tmp_path, split, 2, classes=classes)
    unlike = ", ".join(sorted({"ant", "bee"} ^ set(classes)))
    message = (
        rf"{split} must hold the same class folders as .*train, but they differ in {unlike}; add or remove folders$"
    )
    with pytest.raises(BadInput, match=message):
        check_dataset("imagefolder", root=tmp_path)


def test_a_class_folder_without_an_image_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "train", 2)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(BadInput, match=r"but 1 of 3 hold none: cat; add some, or remove the folders$"):
        load_dataset("imagefolder", root=tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_broken_image_is_named(tmp_path: Path, keep: int) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2)
    path = tmp_path / "val" / "bee" / "001.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"but 1 of 12 are not: val/bee/001.png \(.+\); get them anew or remove them$"):
        load_dataset("imagefolder", root=tmp_path)


def test_16_bits_of_grey_are_scaled_to_8_and_said_so(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2, mode="L")
    path = tmp_path / "train" / "ant" / "000.png"
    Image.fromarray(np.full((5, 6), 128 * 257, dtype=np.uint16)).save(path)
    dataset = load_dataset("imagefolder", root=tmp_path)
    assert dataset.train.images[0].unique().tolist() == [128]
    assert dataset.notes[0].startswith("1 image with 16 bits of grey, scaled to 8 (the brightest value is 32896 of")


def test_names_of_folders_are_read_as_a_person_does_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    for split in ("TRAIN", "Valid", "testing"):
        fill(tmp_path, split, 2, classes=("10", "2", "1"))
    fill(tmp_path, "TRAIN", 1, classes=(".ipynb_checkpoints",))
    (tmp_path / "TRAIN" / "2" / "a.heic").write_bytes(b"x")
    dataset = load_dataset("imagefolder", root=tmp_path)
    assert dataset.class_names == ("1", "2", "10")
    assert [len(part) for part in dataset.splits().values()] == [6, 6, 6]
    assert dataset.notes[:3] == (
        "class folders are numbered in the order of their numbers: label 0 is 1, 1 is 2, 2 is 10",
        "1 image left out, in hidden folders or hidden themselves: TRAIN/.ipynb_checkpoints/000.png",
        "1 file left out, with endings that are not read (1 .heic): TRAIN/2/a.heic",
    )


def test_images_are_turned_as_their_exif_says_and_transparent_ones_put_on_white(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    upright = picture("train", 0, 9)
    Image.fromarray(np.rot90(upright)).save(tmp_path / "train" / "ant" / "000.png", exif=exif)
    Image.new("RGBA", (6, 5), (9, 9, 9, 0)).save(tmp_path / "train" / "ant" / "001.png")
    dataset = load_dataset("imagefolder", root=tmp_path)
    np.testing.assert_array_equal(dataset.train.images[0].permute(1, 2, 0), upright)
    assert dataset.train.images[1].unique().tolist() == [255]
    assert "1 image with transparent pixels, put on white: train/ant/001.png" in dataset.notes


def test_images_of_all_usual_endings_are_read_and_of_several_frames_the_first(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2)
    ants = tmp_path / "train" / "ant"
    for path in ants.iterdir():
        path.unlink()
    grey = [Image.new("RGB", (6, 5), (level,) * 3) for level in (0, 200)]
    grey[0].save(ants / "a.gif", save_all=True, append_images=grey[1:])
    grey[1].save(ants / "b.jfif", format="JPEG")
    grey[1].save(ants / "c.AVIF")
    grey[1].save(ants / "d.webp")
    dataset = load_dataset("imagefolder", root=tmp_path)
    assert [round(float(image.float().mean()), -1) for image in dataset.train.images[:4]] == [0, 200, 200, 200]
    assert dataset.notes[0] == "1 image of several frames or pages, of which the first is read: train/ant/a.gif"


def test_links_are_followed_and_those_that_lead_back_are_not(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2)
    ants = tmp_path / "train" / "ant"
    (ants / "again").symlink_to(ants)
    (ants / "up").symlink_to(tmp_path / "train" / "ant" / "up")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "back").symlink_to(ants)
    Image.fromarray(picture("more", 0, 9)).save(tmp_path / "more" / "9.png")
    (ants / "more").symlink_to(tmp_path / "more")
    dataset = load_dataset("imagefolder", root=tmp_path)
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.notes[0] == "1 folder left out, called neither train nor val nor test: more"


def test_a_class_of_few_images_that_gets_none_to_validate_with_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "train", 100)
    fill(tmp_path, "train", 4, classes=("cat",))
    notes = load_dataset("imagefolder", root=tmp_path).notes
    assert "the validation split has no image of 1 of 3 classes: cat" in notes


@pytest.mark.parametrize("bad", ["bomb.png", "head.bmp", "head.ppm", "head.png"])
def test_a_bomb_and_a_broken_head_are_named(bad: str, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2)
    path = tmp_path / "train" / "ant" / bad
    head = {
        "bomb.png": b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 10**6, 10**6, 8, 0, 0, 0, 0)),
        "head.bmp": b"BM" + b"\xff" * 60,
        "head.ppm": b"P6\n6 x\n255\n" + bytes(90),
        "head.png": b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", bytes(5)),
    }
    path.write_bytes(head[bad])
    with pytest.raises(BadInput, match=rf"but 1 of 13 are not: train/ant/{bad} \(.+\); get them anew or remove them$"):
        load_dataset("imagefolder", root=tmp_path)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_images_that_were_learned_and_a_small_validation_split_are_named(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 2)
    copied = tmp_path / "val" / "bee" / "001.png"
    copied.write_bytes((tmp_path / "train" / "bee" / "000.png").read_bytes())
    notes = load_dataset("imagefolder", root=tmp_path).notes
    assert notes[0] == (
        "1 of 4 validation images are train images, too, to the byte: val/bee/001.png is train/bee/000.png"
    )
    assert notes[-1] == (
        "the validation split has 4 images only: an accuracy measured with so few is uncertain by up to ±0.35 (95 %)"
    )


def test_all_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 3)
    ants = tmp_path / "train" / "ant"
    (ants / "000.png").write_bytes(b"")
    os.mkfifo(ants / "a.png")
    (ants / "b.png").symlink_to("nothing")
    (ants / "c.bmp").write_bytes(b"BM" + bytes(range(60)))
    (ants / "d.png").write_text("no picture")
    message = (
        r"but 5 of 22 are not: train/ant/000.png \(empty\), train/ant/a.png \(no file, but a pipe.*\), "
        r"train/ant/b.png \(a link to nothing\), train/ant/c.bmp \(Truncated File Read\), "
        r"train/ant/d.png \(no image, or its head is broken\); get them anew or remove them$"
    )
    with pytest.raises(BadInput, match=message):
        load_dataset("imagefolder", root=tmp_path)


def test_too_few_images_to_split_off_a_part_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "train", 2)
    with pytest.raises(
        BadInput, match=r"of 4 images 1 would be taken and 3 kept, fewer than the 2 classes; add images, or folders"
    ):
        load_dataset("imagefolder", root=tmp_path)


def test_all_that_is_wrong_with_a_folder_is_told_at_once(tmp_path: Path) -> None:
    for split in ("train", "val", "valid"):
        fill(tmp_path, split, 3)
    for name in ("cat", "dog", "eel"):
        (tmp_path / "train" / name).mkdir()
    (tmp_path / "val" / "fox").symlink_to("nothing")
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "dog" / "large.png")
    (tmp_path / "val" / "bee" / "000.png").write_bytes(b"")
    (tmp_path / "val" / "bee" / "001.png").write_bytes(b"no picture")
    with pytest.raises(BadInput) as raised:
        check_dataset("imagefolder", root=tmp_path)
    assert [problem.replace(f"{tmp_path}/", "").partition("; ")[0] for problem in raised.value.problems] == [
        f"{tmp_path} must not hold both val and valid",
        "val/fox must be a folder, but is a link to nothing",
        "val must hold the same class folders as train, but they differ in cat, dog, eel",
        "train must hold images in each class folder, but 2 of 5 hold none: cat, eel",
        f"all images of {tmp_path} must be readable, but 2 of 13 are not: val/bee/000.png (empty), "
        "val/bee/001.png (no image, or its head is broken)",
        f"all images of {tmp_path} must be of one size (width x height), but are of 2: "
        "6x5 (10 images, train/ant/000.png), 9x9 (1 image, train/dog/large.png)",
    ]
    assert str(raised.value).startswith(f"6 problems: (1) {tmp_path} must not hold both")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_may_be_of_any_script_and_either_of_unicodes_forms(form: Literal["NFC", "NFD"], tmp_path: Path) -> None:
    classes = ("café", "кот", "猫", "قطة", "🐈", "a b'\"$")
    fill(tmp_path, "train", 3, classes=classes)
    for split in ("val", "test"):
        fill(tmp_path, split, 3, classes=tuple(unicodedata.normalize(form, name) for name in classes))
    (tmp_path / "train" / "猫" / "000.png").rename(tmp_path / "train" / "猫" / "写真 1.PNG")
    dataset = load_dataset("imagefolder", root=tmp_path)
    assert dataset.class_names == tuple(sorted(classes))
    assert [torch.bincount(part.labels).tolist() for part in dataset.splits().values()] == [[3] * 6] * 3
    assert "train/猫/写真 1.PNG" in dataset.files


def test_two_folders_of_one_class_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "train", 3, classes=("cafe\u0301", "caf\u00e9", "tea"))
    with pytest.raises(BadInput, match=r"train must hold one folder of a class, but has two of café, which Unicode"):
        check_dataset("imagefolder", root=tmp_path)


def test_what_file_managers_leave_behind_is_not_read(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path, split, 100)
    plain = load_dataset("imagefolder", root=tmp_path)
    for folder in (tmp_path, tmp_path / "train", tmp_path / "train" / "ant"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r"):
            (folder / name).write_bytes(b"x")
    fill(tmp_path, "train", 1, classes=("__MACOSX",))
    littered = load_dataset("imagefolder", root=tmp_path)
    assert torch.equal(littered.train.images, plain.train.images)
    assert littered.notes == ("1 image left out, in hidden folders or hidden themselves: train/__MACOSX/000.png",)
