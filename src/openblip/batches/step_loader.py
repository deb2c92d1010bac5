"""What the loaders of all tasks have in common: batches numbered by step, made ahead by threads."""

import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import fields, replace
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from openblip.batches.augmentation import Augmentation
from openblip.batches.image_states import RowStates
from openblip.batches.shuffle import shuffled
from openblip.batches.tokenizer import TextTokenizer
from openblip.batches.unknown_words import TextSample
from openblip.runtime.errors import DataError
from openblip.runtime.threads import default_threads, ordered_map
from openblip.table.table import PairTable


class Examples:
    """A batch of some task; each kind is a dataclass of tensors."""

    ids: tuple[str, ...]
    """Ids of the rows or examples, which errors name."""
    step: int
    """Number of the global batch that this is (a part of), from 0."""
    _host: Any = None

    @property
    def on_host(self) -> Self:
        """The batch that this one was copied from to a device; itself where it was not.

        What follows from texts alone, such as how many labels there are, is asked of this one: to
        ask a device is to wait for it.
        """
        return self if self._host is None else cast("Self", self._host)

    def to(self, device: torch.device) -> Self:
        """The batch on a device; itself if that is the CPU, where batches are made."""
        if device.type == "cpu" or self._host is not None:
            return self
        moved = self._changed(lambda tensor: sent(tensor, device))
        # No field: a batch that `replace` makes of this one has texts of its own.
        object.__setattr__(moved, "_host", self)
        return moved

    def pinned(self) -> Self:
        """The batch in memory from which an accelerator copies by itself."""
        return self._changed(Tensor.pin_memory)

    def record(self, stream: torch.Stream) -> None:
        """Let the memory of the tensors be used again only when a stream is done with them."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed = {name: change(tensor) for name, tensor in self._tensors().items()}
        return cast("Self", replace(cast("Any", self), **changed))

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(cast("Any", self))}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, to which it is on its way: the host does not wait.

    Args:
        tensor: on the host; a large one had better be pinned already.
        device: any; on the CPU the tensor itself.
    """
    # Out of other memory CUDA first copies for itself, and may wait for all that runs before it.
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


BatchT = TypeVar("BatchT", bound=Examples)
StatesOf = Callable[[PairTable, np.ndarray], RowStates]
"""From a table and row numbers, which may repeat, to where the states of their images are."""


def copied_ahead(batches: Iterator[BatchT], device: torch.device) -> Iterator[BatchT]:
    """The batches on a device; on CUDA each is copied there while the one before is learnt from.

    One more batch than is in use is on the device.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch
    ahead: BatchT | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch.to(device)
            arrived = copies.record_event()
        if ahead is not None:
            yield ahead
        compute = torch.cuda.current_stream(device)
        # On the device, not on the host, a step waits for its batch.
        compute.wait_event(arrived)
        # Its memory was taken on the other stream, which does not know who reads it.
        moved.record(compute)
        ahead = moved
    if ahead is not None:
        yield ahead


def smaller_batch(there: float, processes: int, accumulate: int = 1) -> str:
    """The remedy where a batch is larger than the `there` examples that there are."""
    # Each process takes equally many in each accumulated part.
    size = int(there) // (processes * accumulate) * processes * accumulate
    if size:
        return f"lower train.batch_size to at most {size} (--train.batch-size {size})"
    fewer = f"use fewer than {processes} processes"
    return fewer if accumulate == 1 else f"{fewer}, or a lower --train.accumulate"


class StepLoader(ABC, Generic[BatchT]):
    """Endless batches, each a function of its number; a context manager, which ends the threads.

    A position in training is (seed, step) and nothing else, so a run resumes at any step, with any
    number of threads, and ranks need not talk to each other.

    Attributes:
        waited_seconds: time that consumers have waited for batches so far.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int | None = None,
        num_prefetched: int = 2,
        pin_memory: bool = False,
    ) -> None:
        """Starts no thread.

        Args:
            batch_size: examples for each rank and step.
            seed: at least 0.
            rank: which part of the global batch is wanted, below `world_size`.
            world_size: number of processes that share a global batch.
            num_threads: None for one for each core, 2 to 16.
            num_prefetched: finished batches that may wait for the consumer.
            pin_memory: put batches where a GPU can fetch them while it computes.
        """
        if batch_size < 1 or not 0 <= rank < world_size or seed < 0:
            raise ValueError(
                "expected batch_size >= 1, 0 <= rank < world_size, seed >= 0. "
                f"Got {batch_size}, {rank}, {world_size}, {seed}."
            )
        self.waited_seconds = 0.0
        self._batch_size, self._rank, self._global_size = batch_size, rank, batch_size * world_size
        self._seed = seed
        self._num_threads = num_threads or default_threads()
        self._num_prefetched = num_prefetched
        self._pin_memory = pin_memory
        # Weak: an iterator that nobody holds any more ends its threads when it is collected.
        self._open: weakref.WeakSet[Generator[BatchT, None, None]] = weakref.WeakSet()

    @abstractmethod
    def use_states(self, states_of: "StatesOf") -> None:
        """Give the states of images in the images' place, which are read no more.

        Args:
            states_of: finds those of the rows of a table.
        """

    @property
    @abstractmethod
    def batches_per_epoch(self) -> float:
        """Global batches in a pass over the data, with the fraction."""

    @property
    @abstractmethod
    def num_examples(self) -> int:
        """Examples that there are, each counted once."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of the examples that are drawn from; equal on every machine."""

    @abstractmethod
    def summary(self) -> list[str]:
        """Lines for a person: what an epoch is made of."""

    @abstractmethod
    def text_sample(self, most: int) -> TextSample:
        """What the tokenizer makes of the texts of all examples, or of about `most` of them.

        Those that are looked at lie at even distances; no image is read.
        """

    @abstractmethod
    def make(self, step: int) -> BatchT:
        """This rank's part of the global batch of that number."""

    def iterate(self, start_step: int = 0) -> Iterator[BatchT]:
        """Endless batches from the global batch number `start_step` on.

        The threads of an iterator end with it: when it is closed, collected, or raises.

        Raises:
            DataError: (while iterating) an image cannot be read; names the row.
        """
        # Not iterated before somebody asks: the threads start with the first batch.
        batches = self._iterate(start_step)
        self._open.add(batches)
        return batches

    def close(self) -> None:
        """Ends the threads of every iterator that was handed out; those yield no more."""
        # A list: closing one takes it out of the set.
        for batches in list(self._open):
            batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _iterate(self, start_step: int) -> Generator[BatchT, None, None]:
        # One thread makes one batch, so that a single read fetches its rows.
        # Bounded, or a slow model would fill the memory with batches.
        ahead = self._num_threads + self._num_prefetched
        batches = ordered_map(self._made, _count(start_step), self._num_threads, ahead)
        try:
            while True:
                start = time.perf_counter()
                batch = next(batches)
                self.waited_seconds += time.perf_counter() - start
                yield batch
        finally:
            batches.close()

    def _made(self, step: int) -> BatchT:
        batch = self.make(step)
        # By the thread that made it: the one that trains has no time to copy.
        return batch.pinned() if self._pin_memory else batch


class ExampleIndex(Protocol):
    """The examples that stand in the metadata of a split's rows."""

    @property
    def table(self) -> PairTable:
        """Whose rows they belong to."""

    @property
    def split(self) -> str:
        """Which of the rows."""

    @property
    def image_rows(self) -> np.ndarray:
        """Rows whose images the examples are about; they may repeat."""

    def __len__(self) -> int: ...


IndexT = TypeVar("IndexT", bound=ExampleIndex)


class ExampleLoader(StepLoader[BatchT], Generic[BatchT, IndexT]):
    """Batches of what an index holds, shuffled anew in each epoch.

    Attributes:
        index: the examples.
    """

    noun: ClassVar[str]
    """What errors call the examples."""

    def __init__(
        self,
        index: IndexT,
        tokenizer: TextTokenizer,
        batch_size: int,
        image_size: int,
        augmentation: Augmentation | None,
        max_tokens: int,
        max_words: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        """Starts no thread.

        Args:
            index: the examples.
            tokenizer: for their texts.
            batch_size: examples for each rank and step.
            image_size: pixels of a side.
            augmentation: None for the plain resizing of evaluation.
            max_tokens: texts are cut to this many, `[ENC]` and `[SEP]` included.
            max_words: texts are cut to this many before they are tokenised.
            seed: at least 0; decides order and augmentation.
            rank: which part of the global batch is wanted, below `world_size`.
            world_size: number of processes that share a global batch.
            num_threads: None for one for each core, 2 to 16.
            pin_memory: put batches where a GPU can fetch them while it computes.

        Raises:
            DataError: there are fewer examples than a global batch has.
        """
        super().__init__(batch_size, seed, rank, world_size, num_threads, pin_memory=pin_memory)
        self.index = index
        self._tokenizer, self._max_tokens, self._max_words = tokenizer, max_tokens, max_words
        self._image_size, self._augmentation = image_size, augmentation
        self._states: RowStates | None = None
        if len(index) < self._global_size:
            raise DataError(
                f"{index.table.uri} has {len(index)} {self.noun} in the split {index.split!r}, "
                f"less than one global batch of {self._global_size}: "
                f"{smaller_batch(len(index), world_size)}"
            )

    def use_states(self, states_of: StatesOf) -> None:
        """As `StepLoader` says."""
        self._states = states_of(self.index.table, self.index.image_rows)

    @property
    def batches_per_epoch(self) -> float:
        """Global batches in a pass over the examples, with the fraction."""
        return len(self.index) / self._global_size

    @property
    def num_examples(self) -> int:
        """Examples that there are."""
        return len(self.index)

    def _drawn(self, step: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Numbers of this rank's examples, int64 (batch,), and of each its epoch and number."""
        first = step * self._global_size + self._rank * self._batch_size
        numbers, epochs = shuffled(len(self.index), self._seed, first, self._batch_size)
        return numbers, list(zip(epochs.tolist(), numbers.tolist(), strict=True))


AnyLoader = StepLoader[Any]


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below `count`, at even distances; int64."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _count(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1
