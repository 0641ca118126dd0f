"""docs/your-own-network.md, followed at small size: a network that was trained outside Dux, and a folder of images."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from running import Said

from search.study_file import StudyFile
from spaces import BadInput

PAGE = Path(__file__).parents[2] / "docs" / "your-own-network.md"
SIDE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes, and a torchvision ResNet-18 that was trained on them, saved as training scripts do."""
    where, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    images: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for split, count in (("train", 24), ("val", 16), ("test", 6)):
        for label, name in enumerate(("dots", "lines", "plain")):
            place = where / "pictures" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(60, 120, size=(SIDE, SIDE, 3), dtype=np.uint8)
                step = int(rng.integers(3, 6))
                if label == 0:
                    pixels[::step, ::step] = 255
                if label == 1:
                    pixels[::step] = 255
                Image.fromarray(pixels).save(place / f"{number}.png")
                images.get(split, []).append(pixels)
    labels = torch.arange(3).repeat_interleave(24)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = (torch.from_numpy(np.stack(images["train"])).permute(0, 3, 1, 2) / 255 - mean) / std
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(24):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[rows]), labels[rows]).backward()
            optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 8, "state_dict": state}, where / "resnet18.pth")
    return where


def commands() -> list[list[str]]:
    """Those of the page, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("dux ")]


def test_the_page_leads_from_a_trained_network_to_a_student_in_onnx(
    folder: Path, home: Path, dux_here: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    where = ("--home", str(home))
    for words in commands():
        smaller = [str(SIDE) if word == "96" else word for word in words]
        code, out, err = dux_here(*smaller, *(() if words[0] == "init" else where))
        assert code == 0, (words, out, err)
        if words[0] == "init":
            file = folder / words[1]
            (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
            expected = yaml.safe_load(shown)
            expected["task"]["image_size"] = SIDE
            assert yaml.safe_load(file.read_text()) == expected  # what the page shows is what `dux init` writes
            tiny = {
                "trials: 16": "trials: 2, curve: false",
                "space:\n": "space:\n  training.epochs: 1\n  pruning.rounds: 1\n  pruning.reconstruct: false\n",
            }
            text = file.read_text()
            for old, new in tiny.items():
                text = text.replace(old, new)
            text = text.replace("training.epochs: 1\n", "training.epochs: 1\n  pruning.fine_tune_epochs: 0\n")
            file.write_text(text)
        if words[0] == "check":
            assert "teacher: the prefix `module.` was removed from the names of its weights" in out
            assert "teacher: taps relu, layer1, layer2" in out or "teacher: taps" in out
            assert re.search(r"teacher: [\d,]+ units in \d+ groups can be cut", out)
    (onnx,) = (folder / "student").glob("mine-*.onnx")
    card = json.loads((folder / "student" / "card.json").read_text())
    assert card["class_names"] == ["dots", "lines", "plain"]
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    validation = StudyFile.read(folder / "mine.yaml").task.load_data().validation
    (logits,) = session.run(["logits"], {"images": (validation.images.float() / 255).numpy()})
    right = (logits.argmax(1) == validation.labels.numpy()).mean()
    assert right == pytest.approx(card["validation"]["accuracy"])
    assert right >= 0.3


def test_init_asks_for_what_is_missing_or_says_what_to_add(tmp_path: Path, dux: Callable[..., Said]) -> None:
    code, _, err = dux("init", tmp_path / "a.yaml", "--network", "torchvision:resnet18")
    assert (code, err) == (
        2,
        "dux: the folder of its images must be named, but nobody can be asked here; add `--data`\n",
    )
    code, _, err = dux("init", tmp_path / "a.yaml", "--weights", "w.pth")
    assert code == 2
    assert "add `--network` and `--data`" in err
    assert not (tmp_path / "a.yaml").exists()


def test_init_names_files_as_its_study_file_finds_them(
    tmp_path: Path, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ("--network", "timm:resnet18", "--weights", "w.pth", "--data", "bilder")
    assert dux("init", Path("sub") / "2024 studie.yaml", *given)[0] == 0
    raw = yaml.safe_load((tmp_path / "sub" / "2024 studie.yaml").read_text())
    assert (raw["name"], raw["task"]["root"]) == ("2024-studie", "../bilder")
    assert raw["task"]["teacher"]["weights"] == "../w.pth"
    given = ("--network", "net.pt2", "--data", "bilder")
    assert dux("init", Path("sub") / "file.yaml", *given)[0] == 0
    raw = yaml.safe_load((tmp_path / "sub" / "file.yaml").read_text())
    assert raw["task"]["teacher"] == {"network": "../net.pt2"}
    given = ("--network", "models:/net/1/net.pt2", "--weights", "runs:/1/w", "--data", "bilder")
    assert dux("init", Path("sub") / "stored.yaml", *given)[0] == 0
    raw = yaml.safe_load((tmp_path / "sub" / "stored.yaml").read_text())
    assert raw["task"]["teacher"] == {"network": "models:/net/1/net.pt2", "weights": "runs:/1/w"}


@pytest.mark.parametrize("path", ["~nobody-has-this-name/x", "x" * 300])
def test_a_path_that_cannot_be_is_one_line(path: str, tmp_path: Path, dux: Callable[..., Said]) -> None:
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump({"name": "a", "task": {"teacher": {"network": "a:b", "weights": path}}})
    )
    code, out, err = dux("check", tmp_path / "a.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("data", ["a folder: with #", "-x", "übung", "'quoted'", "true"])
def test_init_writes_any_name_so_that_it_is_read_back(
    data: str, tmp_path: Path, dux: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, _ = dux("init", "mine.yaml", "--network", "my.nets:Net", "--data", data, "--weights", data)
    assert code == 0
    raw = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert (raw["task"]["root"], raw["task"]["teacher"]) == (data, {"network": "my.nets:Net", "weights": data})
    with pytest.raises(BadInput, match=r"task\.root must be a folder that exists"):
        StudyFile.read(tmp_path / "mine.yaml")
