"""Which samples of which corpus make a batch, on each process."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from lib import UserError


@dataclass(frozen=True)
class Draw:
    """A request of a sampler to a dataset."""

    corpus: str
    epoch: int
    index: int


class Batches(Sampler[list[Draw]]):
    """Batches of one corpus each, the same corpus on every process at a step.

    Training: each corpus is shuffled anew every epoch and the corpora's batches are mixed in random
    order, so each comes in proportion to its size; what does not fill a batch on every process is left
    for the next epoch. Evaluation: every sample once, in order, in batches of nearly even size (a batch is
    also where video-text matching finds its other texts); batch k is the same whatever the number of
    processes, and process r takes the batches r, r + n, ...

    With `keep_last` training is as the published fine-tuning instead: nothing is left, the last batch has the
    remaining samples, and a few come twice where processes do not divide their number.

    In training a corpus may be shared out among nodes, `pools` {name: the samples of each node}: a node's
    processes, which follow one another in rank, draw from its pool alone; an epoch ends with the smallest.

    With `shuffle_rows` samples are shuffled within that many which follow one another in the files, and those
    groups are shuffled: a disk then reads one part of a file at a time.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_sizes: Mapping[str, int],
        train: bool,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        pools: Mapping[str, Sequence[np.ndarray]] | None = None,
        keep_last: bool = False,
        shuffle_rows: int = 0,
    ) -> None:
        self.sizes, self.train, self.seed, self.keep_last = dict(sizes), train, seed, keep_last
        self.shuffle_rows = shuffle_rows
        self.rank, self.processes, self.epoch, self.skip = rank, processes, 0, 0
        self.batch_sizes = dict(batch_sizes)
        self.pools = {name: [torch.arange(size)] for name, size in sizes.items()}
        self.pools |= {name: [torch.from_numpy(p) for p in parts] for name, parts in (pools or {}).items()}
        if train and not keep_last:  # a corpus that is smaller than a batch is one batch
            for name, parts in self.pools.items():
                least = min(len(part) * len(parts) for part in parts)
                if least < processes:
                    raise UserError(f"corpus {name} has {least} samples for {processes} processes.")
                self.batch_sizes[name] = min(batch_sizes[name], least // processes)

    def __len__(self) -> int:
        if self.train:
            return sum(self.steps(name) for name in self.sizes)
        batches = sum(math.ceil(n / self.batch_sizes[name]) for name, n in self.sizes.items())
        return len(range(self.rank, batches, self.processes))

    def steps(self, name: str) -> int:
        """Training batches of a corpus in an epoch: as many as the smallest pool has for its processes."""
        if self.keep_last:
            share = math.ceil(self.sizes[name] / self.processes)
            return math.ceil(share / self.batch_sizes[name])
        parts = self.pools[name]
        return min(len(p) for p in parts) // (self.batch_sizes[name] * self.processes // len(parts))

    def __iter__(self) -> Iterator[list[Draw]]:
        yield from (self.training() if self.train else self.evaluation())[self.skip :]

    def training(self) -> list[list[Draw]]:
        """This process's batches of the epoch."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        split = self.all_samples if self.keep_last else self.whole_batches
        batches = [
            [Draw(name, self.epoch, index) for index in row]
            for name in self.pools
            for row in split(name, generator)
        ]
        order = torch.randperm(len(batches), generator=generator)
        if self.shuffle_rows and not self.keep_last:  # corpora are mixed, the batches of each stay in order
            bounds = np.cumsum([0, *(self.steps(name) for name in self.pools)])
            for first, last in itertools.pairwise(bounds.tolist()):
                own = (order >= first) & (order < last)
                order[own] = order[own].sort().values
        return [batches[i] for i in order.tolist()]

    def shuffled(self, size: int, generator: torch.Generator) -> Tensor:
        """0 to size - 1 in random order, or in groups of `shuffle_rows`: see the class."""
        rows = self.shuffle_rows
        if not rows:
            return torch.randperm(size, generator=generator)
        groups = torch.arange(size).split(rows)
        order = torch.randperm(len(groups), generator=generator).tolist()
        return torch.cat([groups[i][torch.randperm(len(groups[i]), generator=generator)] for i in order])

    def whole_batches(self, name: str, generator: torch.Generator) -> list[list[int]]:
        """This process's share of a corpus in random order, without the rest that fills no batch."""
        parts = self.pools[name]
        orders = [part[self.shuffled(len(part), generator)] for part in parts]
        steps, each, processes = self.steps(name), self.batch_sizes[name], self.processes // len(parts)
        pool, place = divmod(self.rank, processes)
        return orders[pool][: steps * each * processes].view(steps, processes, each)[:, place].tolist()

    def all_samples(self, name: str, generator: torch.Generator) -> list[list[int]]:
        """As `whole_batches`, with all samples, the first ones again where processes do not divide them."""
        size = self.sizes[name]
        order, share = torch.randperm(size, generator=generator), math.ceil(size / self.processes)
        mine = order.repeat(self.processes)[: share * self.processes][self.rank :: self.processes]
        return [part.tolist() for part in mine.split(self.batch_sizes[name])]

    def evaluation(self) -> list[list[Draw]]:
        """This process's share of all batches."""
        batches = []
        for name, size in self.sizes.items():
            parts = np.array_split(np.arange(size), math.ceil(size / self.batch_sizes[name]))
            batches += [[Draw(name, 0, index) for index in part.tolist()] for part in parts]
        return batches[self.rank :: self.processes]
