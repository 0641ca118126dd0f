"""Knowledge: what all trials of a study share from the teacher, so that it is computed only once.

A transfer method declares what it needs (`trainers.transfer.Needs`); whether that comes from a cache or from a forward
pass is decided here. Outputs are cached if training images are not augmented, because each image then always has the
same output. What is computed once is kept in memory, and in a folder if there is one.
"""

import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor, nn

from trainers.computing import SoundConvolutions, computing
from trainers.data.dataset import pixels
from trainers.families import capture
from trainers.files import Damaged, digest, read_hashed, write_hashed
from trainers.loop import Batch, batches
from trainers.measure import batch_size, in_batches
from trainers.seeding import seeded
from trainers.store import weights_bytes
from trainers.task import Task
from trainers.transfer import Needs, Stage, TeacherSignals
from trainers.transfer.signals import Map, Pass, Signal

CACHE_BYTES = 2**30
"""A signal larger than this for the whole training split is computed batch by batch instead of cached."""
STAGE_BATCH = 128


def _flat(asked: Mapping[str, Signal | tuple[Signal, ...]]) -> list[Signal]:
    """The signals of all fields, each once."""
    return list(
        dict.fromkeys(itertools.chain.from_iterable(s if isinstance(s, tuple) else (s,) for s in asked.values()))
    )


class Knowledge:
    """The teacher's outputs, features and factors on the training split of one task.

    Args:
        task: the teacher's.
        folder: where results are stored for other processes and later sessions; None keeps them in memory.
        arrays: as returned by `arrays` of another process's knowledge; read-only memory is fine.
        say: called with a line if a file was changed since it was written, and is computed again.
    """

    def __init__(
        self,
        task: Task,
        folder: Path | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.task = task
        self._say = say
        self._computed_here: list[Path] = []
        self._folder = None if folder is None else folder / task.key
        self._arrays: dict[str, np.ndarray] = dict(arrays or {})
        self._stages: dict[str, nn.Module] = {}

    def prepare(self, needs: Needs) -> None:
        """Compute what `needs` names, unless it is there: stages are trained, and what fits is cached.

        Raises:
            StageFailed: a stage did not learn what students need from it.
        """
        for signal in _flat(needs.signals(len(self.task.teacher.taps))):
            if signal.of_perturbed and needs.perturbation is not None:
                continue
            if self._cached(signal) is None and signal.stage is not None:
                self._stage(signal.stage)

    def forget(self) -> None:
        """Delete from the folder what this process computed: nothing will learn from it after all."""
        for path in self._computed_here:
            for name in (path.name, f"{path.name}.sha256", f".{path.name}.lock"):
                path.with_name(name).unlink(missing_ok=True)
        if self._folder is not None:
            with suppress(OSError):  # missing, or with another study's knowledge
                self._folder.rmdir()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything cached, including the stages' weights, for Ray's object store."""
        return dict(self._arrays)

    def signals(self, needs: Needs, batch: Batch, generator: torch.Generator) -> TeacherSignals:
        """The signals that `needs` names for one batch, detached, on the batch's device.

        Args:
            needs: of the method.
            batch: of training images.
            generator: on the CPU; perturbations are drawn from it.
        """
        taps = len(self.task.teacher.taps)
        signals, perturbed = _flat(needs.signals(taps)), None
        if needs.perturbation is not None:
            teacher = self.task.teacher.to(batch.images.device)
            perturbed = needs.perturbation.apply(batch.images, teacher.members, teacher.member, generator)
        moved = [signal for signal in signals if perturbed is not None and signal.of_perturbed]
        tensors = self._of_batch([signal for signal in signals if signal not in moved], batch)
        if perturbed is not None:
            tensors.update(self._computed(moved, perturbed))
        rows = batch.index.to(batch.images.device) if needs.rows else None
        return needs.gather(taps, tensors.__getitem__, rows=rows, perturbed=perturbed)

    def _of_batch(self, signals: Sequence[Signal], batch: Batch) -> dict[Signal, Tensor]:
        """Signals of a batch of training images: from caches, or else by one forward pass."""
        caches = {signal: self._cached(signal) for signal in signals}
        tensors = {
            signal: torch.from_numpy(cache[batch.index.numpy()]).to(batch.images.device)
            for signal, cache in caches.items()
            if cache is not None
        }
        if missing := [signal for signal in signals if signal not in tensors]:
            tensors.update(self._computed(missing, batch.images))
        return tensors

    def _computed(self, signals: Sequence[Signal], images: Tensor) -> dict[Signal, Tensor]:
        """Signals of images (B, C, H, W) by a forward pass of the teacher."""
        teacher = self.task.teacher.to(images.device)
        with torch.no_grad():
            seen = Pass(capture(teacher, images), teacher.members, lambda stage: self._stage(stage).to(images.device))
            return {signal: signal.compute(seen) for signal in signals}

    def _cached(self, signal: Signal) -> np.ndarray | None:
        """The signal of every training image, (N, ...), or None if it is not cached."""
        if signal.name not in self._arrays and self._fits(signal):

            def compute() -> bytes:
                buffer = io.BytesIO()
                np.save(buffer, self._whole(signal))
                return buffer.getvalue()

            self._arrays[signal.name] = np.load(io.BytesIO(self._once(f"{signal.name}.npy", compute)))
        return self._arrays.get(signal.name)

    def _fits(self, signal: Signal) -> bool:
        """Whether the signal is the same in every epoch and small enough to cache for all training images."""
        images = self.task.data.train.images
        if self.task.spec.policy != "none":
            return False
        one = self._computed([signal], pixels(images[:2]))[signal]
        return one[0].numel() * one.element_size() * len(images) <= CACHE_BYTES

    def _whole(self, signal: Signal) -> np.ndarray:
        """The signal of every training image, (N, ...), computed."""
        data = self.task.data
        parts = in_batches(data.train.images, batch_size(self.task.teacher, data.image_shape))
        return np.concatenate([self._computed([signal], pixels(part))[signal].numpy() for part in parts])

    def _stage(self, stage: Stage) -> nn.Module:
        """The trained module of a stage."""
        if stage.key not in self._stages:
            tap = Map(stage.tap % len(self.task.teacher.taps))
            maps = self._computed([tap], pixels(self.task.data.train.images[:2]))[tap]
            generator = torch.Generator().manual_seed(int(digest(self.task.spec.teacher.seed, stage.key)[:8], 16))
            with seeded(generator):
                module = stage.build((maps.shape[1], maps.shape[2], maps.shape[3]))

            def train() -> bytes:
                # many passes over the same maps: cached only meanwhile, since students do not use the maps
                whole = self._whole(tap) if self._fits(tap) else None
                with torch.enable_grad(), SoundConvolutions():
                    record = stage.train(module, lambda: self._passes(tap, whole, generator))
                if self._folder is not None:
                    self._computed_here.append(self._folder / f"{stage.key}.json")
                    write_hashed(self._computed_here[-1], json.dumps(record))
                return weights_bytes(module)

            filename = f"{stage.key}.safetensors"
            if filename not in self._arrays:
                self._arrays[filename] = np.frombuffer(self._once(filename, train), np.uint8)
            module.load_state_dict(safetensors.torch.load(self._arrays[filename].tobytes()))
            self._stages[stage.key] = module.eval().requires_grad_(False)
        return self._stages[stage.key]

    def _passes(self, tap: Map, whole: np.ndarray | None, generator: torch.Generator) -> Iterator[Tensor]:
        """One shuffled pass over the teacher's maps (B, C, H, W) of the training split, from `whole` if given."""
        data, policy = self.task.data.train, self.task.spec.policy
        for batch in batches(data, STAGE_BATCH, policy, generator, torch.device("cpu")):
            if whole is not None:
                yield torch.from_numpy(whole[batch.index.numpy()])
            else:
                yield self._computed([tap], batch.images)[tap]

    def _once(self, filename: str, compute: Callable[[], bytes]) -> bytes:
        """The content of a file in the folder, computed by one process while others wait for it."""
        if self._folder is None:
            with computing(self.task.spec.teacher.threads):
                return compute()
        path = self._folder / filename
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / f".{filename}.lock"):
            try:
                return read_hashed(path)
            except FileNotFoundError:
                pass
            except Damaged as error:
                self._say(f"{error}; it is computed again (in {self._folder})")
            self._computed_here.append(path)
            with computing(self.task.spec.teacher.threads):
                content = compute()
            write_hashed(path, content)
        return content
