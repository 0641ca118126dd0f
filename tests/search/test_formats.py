"""Files of networks of every kind compute what the cut network does, for batches of any size."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.errors import ExportRefused
from search.formats import DEFAULT, FORMATS
from spaces import Student
from trainers.data import pixels
from trainers.exported import read_exported
from trainers.families import FAMILIES, Network, OwnNetwork, build
from trainers.spectral import cut, plan, spectralize, trace

SHAPE = (3, 8, 12)
SMALLEST = {"resnet": 8, "wrn": 10, "vgg": 8}


class Branches(nn.Module):
    """Residual, depthwise and concatenated parts; the size of a batch as a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down = nn.Conv2d(8, 6, 3, 2, 1)
        self.side = nn.Conv2d(8, 5, 1, 2)
        self.fc = nn.Linear(11, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + F.relu(self.depthwise(x))
        x = F.relu(torch.cat([self.down(x), self.side(x)], 1))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).view(len(x), -1))
        return logits


class Picky(Branches):
    """Computes something else for two images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (1 if x.shape[0] == 2 else 0)


def network(kind: str) -> Network:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if kind == "own":
            return OwnNetwork(Branches(), SHAPE, 10, called="it")
        student = Student(family=kind, depth=SMALLEST.get(kind, 3), width=0.1)
        return build(student, SHAPE, 10, generator=torch.Generator().manual_seed(0))


# the two deep ones take seconds each; a batch size that their code fixed would go unseen otherwise
@pytest.mark.parametrize("kind", [*FAMILIES, "own"])
def test_the_file_of_a_cut_network_computes_the_same_for_batches_of_any_size(kind: str) -> None:
    whole = network(kind)
    whole = spectralize(whole, keep=whole.heads)
    student = cut(whole, plan(trace(whole, SHAPE), 0.5, floor=0.1)).eval()
    images = torch.randint(256, (5, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = student(pixels(images))
    content = DEFAULT.write(student, pixels(images[:2]), {})
    for batch in (1, 5):
        torch.testing.assert_close(DEFAULT.run(content, images, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_a_network_that_needs_the_size_of_a_batch_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(
        ExportRefused, match=r"batches of any size, but its code needs their size: .*; use `images.sh"
    ) as e:
        FORMATS[name].write(Picky().eval(), torch.rand(2, *SHAPE), {})
    assert "\n" not in str(e.value)


def test_a_student_that_dux_exported_can_be_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "student.pt2").write_bytes(
        FORMATS["pt2"].write(network("own").eval(), torch.rand(2, *SHAPE), {"a": "b"})
    )
    images = torch.rand(3, *SHAPE)
    torch.testing.assert_close(read_exported(tmp_path / "student.pt2")(images), network("own").eval()(images))
