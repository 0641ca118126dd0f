"""A user's own images: ROOT/train/CLASS/IMAGE, and the same below ROOT/val (or ROOT/validation) and ROOT/test.

Where ROOT/test is missing, a fifth of the train images is split off; then, where ROOT/val is missing, a tenth of
what is left. Classes are numbered in the order of their names.
"""

from pathlib import Path

from PIL import Image

from spaces.errors import BadInput
from trainers.data.dataset import Dataset, Split
from trainers.data.fetching import one_line
from trainers.data.splits import TEST_SHARE, VALIDATION_SHARE, split_off

LAYOUT = "task.root must hold train/CLASS/IMAGE (and may hold val/CLASS/IMAGE and test/CLASS/IMAGE)"

Sample = tuple[str, int]  # an image file and its class


def check(root: Path, image_size: int | None) -> None:
    """Raises BadInput if folders are missing or do not name the same classes; opens no image."""
    if image_size is not None and image_size < 1:
        raise BadInput(
            f"task.image_size >= 1 must hold, but got {image_size}; leave it out to keep the images' own size"
        )
    folders = _folders(root)
    if "train" not in folders:
        raise BadInput(f"{LAYOUT}, but {root / 'train'} is not there; move the images, or correct task.root")
    if (root / "val").is_dir() and (root / "validation").is_dir():
        raise BadInput(f"{root} must not hold both val and validation; move the images of one into the other")
    classes = _classes(folders["train"])
    if len(classes) < 2:
        raise BadInput(
            f"{LAYOUT} with two classes or more, but {folders['train']} has {len(classes)}; add folders to it"
        )
    for folder in folders.values():
        if unlike := sorted(_classes(folder) ^ classes):
            raise BadInput(
                f"{folder} must hold the same class folders as {folders['train']}, but they differ in "
                f"{', '.join(unlike)}; add or remove folders"
            )


def load(root: Path, image_size: int | None) -> Dataset:
    """Reads every image into memory: one channel if all are grey (mode L), three otherwise.

    Args:
        root: the folder described above.
        image_size: shrinks or grows the shorter side to this many pixels and cuts the middle square out; without it
            all images must be of one size.

    Raises:
        BadInput: if an image cannot be read or differs in size, or if there are too few to split off a part.
    """
    folders = _folders(root)
    samples = {split: _samples(folder) for split, folder in folders.items()}
    height, width, mode = _format([path for part in samples.values() for path, _ in part], image_size)
    splits = {split: _read(part, height, width, mode, image_size) for split, part in samples.items()}
    train = splits["train"]
    if "test" in splits:
        test = splits["test"]
    else:
        train, test = split_off(train, TEST_SHARE, "imagefolder")
    if "validation" in splits:
        validation = splits["validation"]
    else:
        train, validation = split_off(train, VALIDATION_SHARE, "imagefolder")
    return Dataset("imagefolder", len(_classes(folders["train"])), train, validation, test)


def _folders(root: Path) -> dict[str, Path]:
    """The folder of each split that is there."""
    named = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
    return {split: root / folder for folder, split in named.items() if (root / folder).is_dir()}


def _classes(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir()}


def _samples(folder: Path) -> list[Sample]:
    from torchvision.datasets import ImageFolder  # here, since it takes seconds to import

    try:
        samples: list[Sample] = ImageFolder(folder).samples
    except FileNotFoundError as error:  # a class folder without an image
        raise BadInput(f"{folder} must hold images in each class folder, but: {one_line(error)}; add some") from error
    return samples


def _format(paths: list[str], image_size: int | None) -> tuple[int, int, str]:
    """(H, W, mode) of the images in memory, from the heads of all files."""
    seen: dict[tuple[int, int], str] = {}  # (W, H), and the first file of that size
    modes = set()
    for path in paths:
        image = _open(path)
        if image.mode.startswith(("I", "F")):  # Pillow would clip the values at 255
            raise BadInput(f"images must have 8 bits a channel, but {path} has mode {image.mode}; convert it")
        modes.add(image.mode)
        seen.setdefault(image.size, path)
    mode = "L" if modes == {"L"} else "RGB"
    if image_size is not None:
        return image_size, image_size, mode
    if len(seen) > 1:
        (size, path), (other_size, other_path), *_ = seen.items()
        raise BadInput(
            f"all images must be of one size, but {path} is {size[0]}x{size[1]} and {other_path} is "
            f"{other_size[0]}x{other_size[1]} (width x height); set task.image_size to resize and crop them"
        )
    [(width, height)] = seen
    return height, width, mode


def _read(samples: list[Sample], height: int, width: int, mode: str, image_size: int | None) -> Split:
    import torch  # here, as the next one: they take seconds to import
    from torchvision.transforms.v2 import functional

    images = torch.empty((len(samples), len(mode), height, width), dtype=torch.uint8)
    for image, (path, _) in zip(images, samples, strict=True):
        picture = _open(path, mode)
        if image_size is not None:
            picture = functional.center_crop(functional.resize(picture, [image_size]), [image_size])
        image.copy_(functional.pil_to_tensor(picture))
    return Split(images, torch.tensor([label for _, label in samples]))


def _open(path: str, mode: str | None = None) -> Image.Image:
    """The image converted to `mode`, or only its head (size and mode) if `mode` is None."""
    try:
        with Image.open(path) as image:
            return image if mode is None else image.convert(mode)
    except (OSError, SyntaxError) as error:  # Pillow's PNG reader raises SyntaxError on a bad chunk
        raise BadInput(f"{path} must be an image, but: {one_line(error)}; get it anew or remove it") from error
