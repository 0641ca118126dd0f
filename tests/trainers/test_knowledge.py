"""Knowledge: the same signals wherever they come from, and nothing computed twice."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainers import Knowledge, Task, knowledge
from trainers.data.dataset import pixels
from trainers.families import capture
from trainers.loop import Batch, batches
from trainers.transfer import Needs, Stage, StageFailed, TeacherSignals
from trainers.transfer.signals import Pass, Signal


@dataclass(frozen=True)
class Mixer(Stage):
    """A stage that is quick to train: one 1x1 convolution, a few steps towards its own input."""

    steps: int = 3
    tap = 1
    trainings: ClassVar[list[str]] = []
    """The keys of those trained in this process, in order."""

    def build(self, shape: tuple[int, int, int]) -> nn.Module:
        return nn.Conv2d(shape[0], shape[0], 1)

    def train(self, module: nn.Module, maps: Callable[[], Iterator[Tensor]]) -> dict[str, float]:
        self.trainings.append(self.key)
        if self.steps == 0:
            raise StageFailed("nothing was learned")
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for batch, _ in zip(maps(), range(self.steps), strict=False):
            optimizer.zero_grad()
            (module(batch) - batch).square().mean().backward()
            optimizer.step()
        return {"steps": float(self.steps)}

    def apply(self, module: nn.Module, maps: Tensor) -> Tensor:
        staged: Tensor = module(maps).flatten(1)
        return staged


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


NEEDS = Needs(logits=True, maps=(-1, 0), stage=Mixer())


def batch_of(task: Task, *rows: int) -> Batch:
    index = torch.tensor(rows)
    return Batch(index, pixels(task.data.train.images[index]), task.data.train.labels[index])


def tensors(signals: TeacherSignals) -> list[Tensor]:
    """All that there are, in the order of the fields."""
    fields = [value if isinstance(value, tuple) else (value,) for value in vars(signals).values() if value is not None]
    return list(itertools.chain.from_iterable(fields))


@pytest.fixture(params=["task", "plain_task"])
def either_task(request: pytest.FixtureRequest) -> Task:
    """With augmentation (signals are computed) and without (they are cached)."""
    task: Task = request.getfixturevalue(request.param)
    return task


def test_memory_folder_and_another_processes_arrays_give_the_same_signals(either_task: Task, tmp_path: Path) -> None:
    Mixer.trainings.clear()
    in_memory, in_folder = Knowledge(either_task), Knowledge(either_task, tmp_path)
    for one in (in_memory, in_folder):
        one.prepare(NEEDS)
    assert len(Mixer.trainings) == 2
    handed_over = in_memory.arrays()
    for array in handed_over.values():
        array.setflags(write=False)  # as they come from Ray's object store
    from_folder, from_arrays = Knowledge(either_task, tmp_path), Knowledge(either_task, None, handed_over)
    unprepared = Knowledge(either_task, tmp_path)
    for one in (from_folder, from_arrays):
        one.prepare(NEEDS)
    batch = batch_of(either_task, 199, 0, 7, 7)
    expected = tensors(in_memory.signals(NEEDS, batch, seeded()))
    for one in (in_folder, from_folder, from_arrays, unprepared):
        actual = tensors(one.signals(NEEDS, batch, seeded()))
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert len(Mixer.trainings) == 2  # whoever had a folder or arrays trained nothing anew


def test_signals_are_what_the_teacher_says_of_these_very_images(either_task: Task) -> None:
    batch = batch_of(either_task, 3, 50, 3, 120)
    signals = Knowledge(either_task).signals(NEEDS, batch, seeded())
    with torch.no_grad():
        features = capture(either_task.teacher, batch.images)
    assert signals.logits is not None
    # batches of another size round differently
    torch.testing.assert_close(signals.logits, features.logits, rtol=1e-5, atol=1e-5)
    for actual, expected in zip(signals.maps, (features.maps[-1], features.maps[0]), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert signals.staged is not None
    assert signals.staged.shape == features.maps[1].flatten(1).shape
    assert not any(tensor.requires_grad for tensor in tensors(signals))


def test_augmented_images_have_signals_of_their_own(task: Task) -> None:
    batch = batch_of(task, 3, 50)
    shifted = Batch(batch.index, batch.images.roll(1, dims=-1), batch.labels)
    learned = Knowledge(task)
    one, other = (
        learned.signals(Needs(logits=True), batch, seeded()).logits,
        learned.signals(Needs(logits=True), shifted, seeded()).logits,
    )
    assert one is not None
    assert other is not None
    assert not torch.allclose(one, other)


def test_what_was_not_asked_for_is_not_there(plain_task: Task) -> None:
    learned, batch = Knowledge(plain_task), batch_of(plain_task, 0, 1)
    assert learned.signals(Needs(), batch, seeded()) == TeacherSignals()
    logits_alone = learned.signals(Needs(logits=True), batch, seeded())
    assert (logits_alone.maps, logits_alone.staged) == ((), None)
    assert set(learned.arrays()) == {"logits"}


def test_signals_may_be_written_into_without_harm(plain_task: Task) -> None:
    learned, batch = Knowledge(plain_task), batch_of(plain_task, 0, 1)
    first = learned.signals(Needs(logits=True), batch, seeded()).logits
    assert first is not None
    expected = first.clone()
    first.zero_()
    again = learned.signals(Needs(logits=True), batch, seeded()).logits
    assert again is not None
    assert torch.equal(again, expected)


def test_a_signal_too_large_to_keep_is_computed(plain_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(plain_task, 3, 50, 3, 120)
    cached = tensors(Knowledge(plain_task).signals(NEEDS, batch, seeded()))
    monkeypatch.setattr(knowledge, "CACHE_BYTES", 0)
    learned = Knowledge(plain_task)
    computed = tensors(learned.signals(NEEDS, batch, seeded()))
    assert list(learned.arrays()) == [f"{Mixer().key}.safetensors"]
    for one, other in zip(cached, computed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_stages_do_not_depend_on_the_global_generator_nor_disturb_it(task: Task) -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        results.append(tensors(Knowledge(task).signals(NEEDS, batch_of(task, 0, 1), seeded()))[-1])
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(*results)


def test_stages_that_differ_are_kept_apart(task: Task, tmp_path: Path) -> None:
    learned, batch = Knowledge(task, tmp_path), batch_of(task, 0, 1)
    one, other = (learned.signals(Needs(stage=Mixer(steps)), batch, seeded()).staged for steps in (1, 2))
    assert one is not None
    assert other is not None
    assert not torch.equal(one, other)


def test_tasks_that_differ_do_not_share_a_folder(task: Task, plain_task: Task, tmp_path: Path) -> None:
    for one in (task, plain_task):
        Knowledge(one, tmp_path).prepare(NEEDS)
    assert {folder.name for folder in tmp_path.iterdir()} == {task.key, plain_task.key}


def test_a_stage_that_failed_is_not_kept(task: Task, tmp_path: Path) -> None:
    needs = Needs(stage=Mixer(steps=0))
    for _ in range(2):
        with pytest.raises(StageFailed, match="nothing was learned"):
            Knowledge(task, tmp_path).prepare(needs)
    assert [path.name for path in (tmp_path / task.key).iterdir() if path.suffix != ".lock"] == []


def test_the_teacher_is_left_as_it_was(task: Task) -> None:
    before = {name: tensor.clone() for name, tensor in task.teacher.state_dict().items()}
    learned = Knowledge(task)
    generator = torch.Generator().manual_seed(0)
    for batch in batches(task.data.train, 64, task.spec.policy, generator, torch.device("cpu")):
        learned.signals(NEEDS, batch, seeded())
    assert not task.teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.teacher.state_dict().items())
    assert all(isinstance(array, np.ndarray) for array in learned.arrays().values())


def zeroed(path: Path) -> None:
    np.save(path, np.zeros_like(np.load(path)))


def not_a_number(path: Path) -> None:
    np.save(path, np.full_like(np.load(path), np.nan))


def five_rows(path: Path) -> None:
    np.save(path, np.load(path)[:5])


def without_its_hash(path: Path) -> None:  # what a home of another time has
    path.with_name(f"{path.name}.sha256").unlink()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [zeroed, not_a_number, five_rows, without_its_hash, a_pipe])
def test_a_cached_signal_that_was_changed_is_computed_anew_with_a_line(
    change: Callable[[Path], None], plain_task: Task, tmp_path: Path
) -> None:
    needs, batch = Needs(logits=True), batch_of(plain_task, 0, 7, 199)
    expected = Knowledge(plain_task, tmp_path).signals(needs, batch, seeded()).logits
    assert expected is not None
    path = tmp_path / plain_task.key / "logits.npy"
    content = path.read_bytes()
    change(path)
    said: list[str] = []
    for _ in range(2):
        actual = Knowledge(plain_task, tmp_path, say=said.append).signals(needs, batch, seeded()).logits
        assert actual is not None
        assert torch.equal(actual, expected)
    assert path.read_bytes() == content
    (line,) = said
    assert line.startswith("logits.npy ")
    assert line.endswith(f"; it is computed again (in {path.parent})")


def test_a_stage_of_another_teacher_is_not_taken(task: Task, plain_task: Task, tmp_path: Path) -> None:
    needs, name = Needs(stage=Mixer()), f"{Mixer().key}.safetensors"
    for one in (task, plain_task):
        Knowledge(one, tmp_path).prepare(needs)
    own = (tmp_path / task.key / name).read_bytes()
    for file in (name, f"{name}.sha256"):  # its hash, too
        (tmp_path / task.key / file).write_bytes((tmp_path / plain_task.key / file).read_bytes())
    said: list[str] = []
    Knowledge(task, tmp_path, say=said.append).prepare(needs)
    assert len(said) == 1
    assert (tmp_path / task.key / name).read_bytes() == own


def test_what_was_computed_in_vain_can_be_forgotten_and_what_was_there_stays(plain_task: Task, tmp_path: Path) -> None:
    folder = tmp_path / plain_task.key
    Knowledge(plain_task, tmp_path).prepare(Needs(logits=True))
    there = sorted(folder.iterdir())
    later = Knowledge(plain_task, tmp_path)
    later.prepare(NEEDS)
    assert len(sorted(folder.iterdir())) > len(there)
    later.forget()
    assert sorted(folder.iterdir()) == there
    alone = Knowledge(plain_task, tmp_path / "alone")
    alone.prepare(NEEDS)
    with pytest.raises(StageFailed):
        alone.prepare(Needs(stage=Mixer(steps=0)))
    alone.forget()
    assert list((tmp_path / "alone").iterdir()) == []


def test_a_new_signal_is_cached_and_handed_over_without_a_word_in_knowledge(
    plain_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Confidence(Signal):
        """The largest probability, (B,)."""

        name = "confidence"

        def compute(self, seen: Pass) -> Tensor:
            return seen.features.logits.softmax(1).amax(1)

    monkeypatch.setattr(Needs, "signals", lambda self, taps: {"staged": Confidence()})
    learned, batch = Knowledge(plain_task), batch_of(plain_task, 5, 1)
    learned.prepare(Needs())
    assert set(learned.arrays()) == {"confidence"}
    with torch.no_grad():
        expected = plain_task.teacher(batch.images).softmax(1).amax(1)
    torch.testing.assert_close(learned.signals(Needs(), batch, seeded()).staged, expected)
