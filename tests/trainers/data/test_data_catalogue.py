import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spaces.errors import BadInput
from trainers.data import AUGMENTATIONS, DATASETS, check_dataset, load_dataset

BOTH = pytest.mark.parametrize("function", [check_dataset, load_dataset])
Function = Callable[..., Any]


@pytest.mark.parametrize("name", DATASETS)
def test_every_default_augmentation_is_a_known_one(name: str) -> None:
    assert DATASETS[name].augmentation in AUGMENTATIONS


@BOTH
def test_an_unknown_name_lists_the_known_ones(function: Function) -> None:
    message = (
        rf"^task.dataset must be one of {', '.join(DATASETS)}, but got 'svhn'; a function of your own is named `pack"
    )
    with pytest.raises(BadInput, match=message):
        function("svhn")


@pytest.mark.parametrize(
    ("name", "near"), [("fashion-mnist", "fashion_mnist"), ("digit", "digits"), ("image_folder", "imagefolder")]
)
def test_a_name_that_is_nearly_right_is_set_right(name: str, near: str) -> None:
    with pytest.raises(BadInput, match=rf"but got '{name}'; did you mean {near}\?$"):
        check_dataset(name)


@BOTH
@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("digits", "root", Path("somewhere")),
        ("digits", "download", True),
        ("digits", "image_size", 32),
        ("digits", "image_size", 0),
        ("fashion_mnist", "image_size", 32),
        ("cifar10", "image_size", 32),
        ("imagefolder", "download", True),
    ],
)
def test_an_option_that_a_data_set_does_not_take_is_refused(
    function: Function, name: str, option: str, value: object
) -> None:
    with pytest.raises(BadInput, match=rf"^{name} takes no task.{option}, but got {value}; leave it out$"):
        function(name, **{option: value})


@BOTH
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagefolder", "npz", "huggingface"])
def test_a_data_set_without_a_place_of_its_own_needs_a_root(function: Function, name: str) -> None:
    with pytest.raises(BadInput, match=rf"^{name} needs task.root, the folder of its files, but got none; set it$"):
        function(name)


@BOTH
@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100"])
def test_a_root_that_is_no_folder_is_refused_with_the_download_as_a_way_out(
    function: Function, name: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "absent", tmp_path / "file"):
        message = (
            rf"^task.root must be a folder that exists, but got {root}; correct it, or set task.download: true to "
        )
        with pytest.raises(BadInput, match=message):
            function(name, root=root)


@BOTH
def test_where_nothing_can_be_fetched_a_missing_root_has_no_such_way_out(function: Function, tmp_path: Path) -> None:
    root = tmp_path / "absent"
    with pytest.raises(BadInput, match=rf"^task.root must be a folder that exists, but got {root}; correct it$"):
        function("imagefolder", root=root)


@pytest.mark.parametrize("limit", [9, 1068])
def test_a_train_limit_out_of_range_is_refused(limit: int) -> None:
    message = (
        rf"^10 <= task.train_limit <= 1067 must hold for digits \(10 classes, 1077 train images\), but got {limit}"
    )
    with pytest.raises(BadInput, match=message):
        load_dataset("digits", train_limit=limit)


def test_importing_and_checking_load_neither_data_nor_the_libraries_that_read_them() -> None:
    program = (
        "import sys; from trainers.data import check_dataset; check_dataset('digits'); check_dataset('fashion_mnist'); "
        "print([name for name in ('torchvision', 'sklearn', 'ray', 'optuna', 'mlflow') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
