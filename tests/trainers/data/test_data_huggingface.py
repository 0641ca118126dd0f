import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from spaces.errors import BadInput
from trainers.data import check_dataset, load_dataset

PIXELS = np.random.default_rng(0).integers(256, size=(60, 5, 6, 3), dtype=np.uint8)
NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def encoded(image: np.ndarray, **options: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, "PNG", **options)
    return {"bytes": file.getvalue(), "path": None}


def made(part: range = range(60), **columns: Any) -> Any:
    """A set of these images; `columns` replace its own."""
    content = {
        "image": [encoded(PIXELS[i]) for i in part],
        "label": [i % 3 for i in part],
        **{name: value for name, (value, _) in columns.items()},
    }
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    kinds |= {name: kind for name, (_, kind) in columns.items()}
    kept = {name: value for name, value in content.items() if value is not None}
    return datasets.Dataset.from_dict(kept, features=datasets.Features({name: kinds[name] for name in kept}))


def test_the_splits_of_the_folder_are_the_splits(tmp_path: Path) -> None:
    parts = {"train": range(40), "valid": range(40, 50), "test": range(50, 60), "unsupervised": range(3)}
    datasets.DatasetDict({name: made(part) for name, part in parts.items()}).save_to_disk(tmp_path / "data")
    check_dataset("huggingface", root=tmp_path / "data")
    dataset = load_dataset("huggingface", root=tmp_path / "data")
    assert (dataset.class_names, dataset.image_shape) == (tuple(NAMES), (3, 5, 6))
    for split, part in zip(dataset.splits().values(), parts.values(), strict=False):
        np.testing.assert_array_equal(split.images.permute(0, 2, 3, 1), PIXELS[part])
        assert split.labels.tolist() == [i % 3 for i in part]
    assert dataset.notes[0] == "splits left out, called neither train nor validation nor test: unsupervised"
    assert "train/data-00000-of-00001.arrow" in dataset.files


def test_one_set_is_train_and_its_pictures_are_read_as_those_of_a_folder(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 3
    images = [encoded(np.rot90(PIXELS[i], 2), exif=exif) for i in range(60)]
    made(image=(images, datasets.Image())).save_to_disk(tmp_path / "turned")
    made().save_to_disk(tmp_path / "plain")
    turned, plain = (load_dataset("huggingface", root=tmp_path / name) for name in ("turned", "plain"))
    assert [len(part) for part in turned.splits().values()] == [43, 5, 12]
    for name, array in plain.arrays().items():
        np.testing.assert_array_equal(turned.arrays()[name], array)


def test_other_columns_are_no_hindrance_and_labels_may_be_texts(tmp_path: Path) -> None:
    texts = [NAMES[i % 3] for i in range(60)], datasets.Value("string")
    made(label=texts, picture_id=(list(range(60)), datasets.Value("int64"))).save_to_disk(tmp_path / "data")
    dataset = load_dataset("huggingface", root=tmp_path / "data", image_size=4)
    assert (dataset.class_names, dataset.image_shape) == (tuple(NAMES), (3, 4, 4))


def test_pictures_that_cannot_be_read_are_named_together(tmp_path: Path) -> None:
    images = [encoded(PIXELS[i]) for i in range(60)]
    images[3] = {"bytes": images[3]["bytes"][:50], "path": None}
    images[5] = None
    made(image=(images, datasets.Image())).save_to_disk(tmp_path / "data")
    with pytest.raises(BadInput, match=r"but 2 of 60 are not: train\[3\] \(.+\), train\[5\] \(empty\); get them anew"):
        load_dataset("huggingface", root=tmp_path / "data")


BAD = {
    "no images": (
        {"image": (None, None), "x": ([1] * 60, datasets.Value("int64"))},
        r"one column of images .* has none",
    ),
    "two images": ({"image2": ([encoded(PIXELS[0])] * 60, datasets.Image())}, r"images .* but has image, image2 \(of"),
    "no labels": ({"label": (None, None)}, r"one column of labels .* but has none \(of image\); rename it"),
    "two labels": (
        {"coarse": ([0] * 60, datasets.ClassLabel(names=["a", "b"]))},
        r"one column of labels .* but has label, coarse \(of",
    ),
    "hidden labels": (
        {"label": ([-1] * 60, datasets.ClassLabel(names=NAMES))},
        r"`label` of the train split of .* must be of the 3 classes, but 60 labels are not: -1",
    ),
}


def test_a_split_that_numbers_other_classes_is_refused(tmp_path: Path) -> None:
    others = made(range(20), label=([i % 3 for i in range(20)], datasets.ClassLabel(names=["bee", "ant", "cat"])))
    datasets.DatasetDict({"train": made(), "validation": others}).save_to_disk(tmp_path / "data")
    with pytest.raises(
        BadInput, match=r"validation split of .* must stand for the same classes .* class 0 is bee inst"
    ):
        load_dataset("huggingface", root=tmp_path / "data")


@pytest.mark.parametrize("mistake", BAD)
def test_what_is_wrong_with_columns_is_one_line(mistake: str, tmp_path: Path) -> None:
    columns, message = BAD[mistake]
    made(**columns).save_to_disk(tmp_path / "data")
    with pytest.raises(BadInput, match=message):
        load_dataset("huggingface", root=tmp_path / "data")


def test_another_folder_is_refused_and_a_broken_one_too(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"holds neither dataset_dict.json nor dataset_info.json; save the data set there"
    ):
        check_dataset("huggingface", root=tmp_path)
    made().save_to_disk(tmp_path / "data")
    (file,) = (tmp_path / "data").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(BadInput, match=r"must be a folder that `datasets` reads, but: .+; save it anew$"):
        load_dataset("huggingface", root=tmp_path / "data")


def test_without_the_library_a_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    program = (
        "import sys; sys.modules['datasets'] = None\n"
        "from pathlib import Path; from spaces.errors import BadInput; from trainers.data import check_dataset\n"
        "try: check_dataset('huggingface', root=Path(sys.argv[1]))\n"
        "except BadInput as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "task.dataset: huggingface needs the library `datasets`, which is not installed; "
        "`pip install 'dux-search[huggingface]'` installs it\n"
    )


def test_checking_does_not_wait_for_the_library(tmp_path: Path) -> None:
    made().save_to_disk(tmp_path / "data")
    program = (
        "import sys; from pathlib import Path; from trainers.data import check_dataset\n"
        "check_dataset('huggingface', root=Path(sys.argv[1]))\n"
        "print({'datasets', 'torch', 'pyarrow'} & {*sys.modules})"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "data")]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_drawn_splits_do_not_depend_on_global_seeds(tmp_path: Path) -> None:
    made().save_to_disk(tmp_path / "data")
    first = load_dataset("huggingface", root=tmp_path / "data")
    torch.manual_seed(5)
    assert torch.equal(load_dataset("huggingface", root=tmp_path / "data").test.images, first.test.images)
