"""Files: written whole or not at all, read back as they were."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from spaces import Student
from trainers import load_student, save_student
from trainers.families import Network, build
from trainers.files import (
    Damaged,
    check_hashes,
    digest,
    hashes,
    read_hashed,
    sealed,
    unsealed,
    write_hashed,
    write_together,
    write_whole,
)
from trainers.spectral import cut, plan, spectralize, trace
from trainers.store import load_network, network_description, weights_bytes

GREY = (1, 8, 8)
ROOT = Path(__file__).parent.parent.parent

WRITER = """
import sys
from pathlib import Path
from trainers.files import write_whole
path, turn = Path(sys.argv[1]), 0
while True:
    turn += 1
    write_whole(path, bytes([turn % 256]) * 3_000_000)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert writer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        contents = set()
        for _ in range(40):  # a reader finds a whole file at any moment
            content = path.read_bytes()
            assert len(content) == 3_000_000
            assert len(set(content)) == 1
            contents.add(content[0])
        assert len(contents) > 1
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    content = path.read_bytes()
    assert len(content) == 3_000_000
    assert len(set(content)) == 1


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_whole(path, "old")
    with pytest.raises(TypeError):
        write_whole(path, 5)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file"]
    write_whole(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file"]


def test_files_that_belong_together_are_written_together_or_none_of_them_is(tmp_path: Path) -> None:
    write_together(tmp_path / "a" / "b", {"one": b"1", "two": b"2"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "b").iterdir()} == {"one": b"1", "two": b"2"}
    write_together(tmp_path / "a" / "b", {"one": b"11", "three": b"3"})
    expected = {"one": b"11", "two": b"2", "three": b"3"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "b").iterdir()} == expected
    too_long = "x" * 300
    with pytest.raises(OSError, match=f"File name too long: '{tmp_path}/a/b/{too_long}'"):
        write_together(tmp_path / "a" / "b", {"one": b"111", "four": b"4", too_long: b""})
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "b").iterdir()} == expected
    with pytest.raises(OSError, match="File name too long"):
        write_together(tmp_path / "c" / "d", {"one": b"1", too_long: b""})
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("calls", range(1, 5))
def test_an_interrupt_while_files_are_put_in_their_places_takes_all_of_it_back(calls: int, tmp_path: Path) -> None:
    write_together(tmp_path / "out", {"one": b"1", "two": b"2"})

    def interrupt(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal calls
        if name == "os.rename" and armed:
            calls -= 1
            if calls == 0:
                raise KeyboardInterrupt

    armed = True
    sys.addaudithook(interrupt)  # there is no way to take it away again
    try:
        with pytest.raises(KeyboardInterrupt):
            write_together(tmp_path / "out", {"one": b"11", "two": b"22"})
    finally:
        armed = False
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"one": b"1", "two": b"2"}


def pruned(student: Student) -> Network:
    generator = torch.Generator().manual_seed(0)
    network = build(student, GREY, 10, generator=generator)
    network.set_normalization(torch.tensor([0.3]), torch.tensor([0.4]))
    network = spectralize(network, keep=network.heads)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "running" in name or "eigenvalues_out" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return cut(network, plan(trace(network, GREY), 0.6, floor=0.0)).eval()


STUDENTS = [
    Student(depth=8, width=0.25),
    Student(depth=14, width=0.1),
    Student(family="mlp", depth=3, width=0.1),
    Student(depth=8, width=0.25, members=3),
    Student(family="mlp", depth=3, width=0.1, members=2),
]


@pytest.mark.parametrize("student", STUDENTS, ids=["resnet8", "resnet14", "mlp", "resnet8 of 3", "mlp of 2"])
def test_a_pruned_network_is_read_back_as_it_was(student: Student, tmp_path: Path) -> None:
    network = pruned(student)
    whole = build(student, GREY, 10, generator=torch.Generator())
    assert weights_bytes(network) != weights_bytes(whole)
    write_whole(tmp_path / "w", weights_bytes(network))
    description = json.loads(json.dumps(network_description(student, GREY, 10)))
    again = load_network(description, tmp_path / "w")
    assert not any(module.training for module in again.modules())
    assert weights_bytes(again) == weights_bytes(network)
    # the layers themselves say their new size: exporters and counters read it there
    assert str(again) == str(network)
    images = torch.rand(5, *GREY, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(images), network(images))


def test_a_loaded_network_does_not_share_memory_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "w"
    write_whole(path, weights_bytes(pruned(STUDENTS[0])))
    before = path.read_bytes()
    network = load_network(network_description(STUDENTS[0], GREY, 10), path)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [3, None, "1"])
def test_a_format_of_another_time_is_refused(version: object, tmp_path: Path) -> None:
    description = {**network_description(STUDENTS[0], GREY, 10), "format": version}
    with pytest.raises(
        ValueError, match=rf"format of a student's description must be 1 or 2, but got {version!r}; update"
    ):
        load_network(description, tmp_path / "w")


@pytest.mark.parametrize("described", [Student(depth=14, width=0.25), Student(family="mlp", depth=3)])
def test_weights_of_another_network_are_refused(described: Student, tmp_path: Path) -> None:
    write_whole(tmp_path / "w", weights_bytes(pruned(STUDENTS[0])))
    with pytest.raises(ValueError, match="weights must have the names of the network they are for, but differ in"):
        load_network(network_description(described, GREY, 10), tmp_path / "w")


def test_weights_files_hold_tensors_alone_and_equal_networks_have_equal_files() -> None:
    network = pruned(STUDENTS[0])
    tensors = safetensors.torch.load(weights_bytes(network))
    assert set(tensors) == set(network.state_dict())
    assert weights_bytes(network) == weights_bytes(pruned(STUDENTS[0]))
    assert weights_bytes(network.to(memory_format=torch.channels_last)) == weights_bytes(pruned(STUDENTS[0]))


def test_a_digest_is_the_same_in_every_process() -> None:
    # by `printf 'x{"a": 1, "b": [2]}' | sha256sum`
    assert digest(b"x", {"b": [2], "a": 1}) == "47a253cf661b7243"
    assert digest(b"x", {"a": 1, "b": [3]}) != digest(b"x", {"b": [2], "a": 1})


def test_a_trials_folder_has_a_result_only_when_it_is_whole(tmp_path: Path) -> None:
    files = {name: name.encode() for name in ("result.json", "recipe.json", "student.json", "student.safetensors")}
    (tmp_path / "student.safetensors").mkdir()  # in the way, so that writing it fails
    with pytest.raises(OSError, match="directory"):
        save_student(tmp_path, files)
    assert not (tmp_path / "result.json").exists()
    (tmp_path / "student.safetensors").rmdir()
    save_student(tmp_path, files)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_folder_that_holds_no_student_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"student\.json"):
        load_student(tmp_path)


RESNET = Student(depth=8, width=0.25)
KEY = "classifier.weight"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """The folder of a sound student."""
    network = build(RESNET, GREY, 10, generator=torch.Generator().manual_seed(0))
    save_student(
        tmp_path,
        {
            "student.json": json.dumps(network_description(RESNET, GREY, 10)).encode(),
            "student.safetensors": weights_bytes(network),
        },
    )
    assert isinstance(load_student(tmp_path), Network)
    return tmp_path


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.full((10, 16), float("nan")), "`classifier.weight` must be finite, but is not"),
        (torch.full((10, 16), float("inf")), "`classifier.weight` must be finite"),
        (torch.zeros(10, 16, dtype=torch.float16), "must be of torch.float32, but is of torch.float16"),
        (torch.zeros(10, 16, dtype=torch.float64), "must be of torch.float32, but is of torch.float64"),
        (torch.zeros(10, 16, dtype=torch.int32), "must be of torch.float32, but is of torch.int32"),
        (torch.zeros(0, 16), r"must be \(10, 16\) or a cut of it, but is \(0, 16\)"),
        (torch.zeros(160), r"must be \(10, 16\) or a cut of it, but is \(160,\)"),
        (torch.zeros(1000, 16), r"must be \(10, 16\) or a cut of it, but is \(1000, 16\)"),
        (torch.zeros(9, 16), "must have layers that fit one another and the images"),
        (torch.zeros(10, 15), "must have layers that fit one another and the images"),
    ],
)
def test_tensors_that_cannot_be_a_students_are_refused(tensor: torch.Tensor, message: str, student: Path) -> None:
    path = student / "student.safetensors"
    path.write_bytes(safetensors.torch.save({**safetensors.torch.load_file(path), KEY: tensor}))
    with pytest.raises(Damaged, match=message):
        load_student(student)


DESCRIBED = network_description(RESNET, GREY, 10)


@pytest.mark.parametrize(
    "content",
    [
        *(json.dumps({key: value for key, value in DESCRIBED.items() if key != left}) for left in DESCRIBED),
        *(
            json.dumps({**DESCRIBED, key: value})
            for key in DESCRIBED
            for value in (None, [], {}, "8", True, -1, 0, 602, 600_002, 10**9, 10**30, 1.0e300, [1, 10**9, 10**9])
            if DESCRIBED[key] != value and (key, value) not in (("format", True), ("members", True))
        ),
        json.dumps({**DESCRIBED, "more": 1}),
        *("", "null", "5", '"student"', "[]", "[" * 100_000, '{"a":' * 100_000, '{"format": 1' + "0" * 6000, "\xff"),
    ],
    ids=lambda content: content[:60],
)
def test_a_description_of_no_network_is_refused_before_one_is_made(content: str, student: Path) -> None:
    (student / "student.json").write_bytes(content.encode("latin-1"))
    began = time.monotonic()
    with pytest.raises(Damaged) as refused:
        load_student(student)
    assert time.monotonic() - began < 5.0
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("name", ["student.json", "student.safetensors"])
def test_what_is_no_file_is_refused_and_not_waited_for(name: str, student: Path) -> None:
    (student / name).unlink()
    os.mkfifo(student / name)
    with pytest.raises(Damaged, match=f"{name} is not a file"):
        load_student(student)
    (student / name).unlink()
    (student / name).mkdir()
    with pytest.raises(Damaged, match=f"{name} cannot be read"):
        load_student(student)


def test_a_student_is_believed_by_its_hashes(student: Path) -> None:
    noted = hashes({name: (student / name).read_bytes() for name in ("student.json", "student.safetensors")})
    check_hashes(student, noted)
    path = student / "student.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors[KEY][0, 0] += 1e-3
    path.write_bytes(safetensors.torch.save(tensors))
    load_student(student)
    with pytest.raises(Damaged, match=r"student\.safetensors was changed"):
        check_hashes(student, noted)


def test_a_hash_beside_a_file_is_of_that_file_at_that_place(tmp_path: Path) -> None:
    path, other = tmp_path / "one" / "file", tmp_path / "other" / "file"
    write_hashed(path, b"content")
    assert read_hashed(path) == b"content"
    other.parent.mkdir()
    for each in path.parent.iterdir():
        (other.parent / each.name).write_bytes(each.read_bytes())
    with pytest.raises(Damaged, match="file was changed"):
        read_hashed(other)
    checked = subprocess.run(
        ["sha256sum", "--check", "one/file.sha256"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert checked.stdout == "one/file: OK\n"
    path.write_bytes(b"contend")
    with pytest.raises(Damaged, match="file was changed"):
        read_hashed(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_hashed(path)


def test_a_record_has_its_own_hash_in_it(tmp_path: Path) -> None:
    record = {"measurements": {"accuracy": 0.1 + 0.2, "nll": float("nan")}, "curve": []}
    path = tmp_path / "result.json"
    path.write_bytes(sealed(record))
    assert json.dumps(unsealed(path)) == json.dumps(record)
    for content in (path.read_bytes().replace(b"0.3", b"0.9"), path.read_bytes()[:-9], b"", b"[]", b"{}", b"[" * 10**5):
        path.write_bytes(content)
        with pytest.raises(Damaged, match=r"result\.json"):
            unsealed(path)
