"""Several processes that train one run: the main process, sums over processes, and failing together.

Processes, devices and the group they form are Accelerate's (`accelerate launch`), and so are its `reduce`, gather and
broadcast. No DistributedDataParallel: it wraps modules, hides attributes that prompts need (`config`), and
reduces only parameters of modules, which the rows of embeddings are not. Here the gradients of everything trained are
summed over the processes before they are used; all then do the same step, and only the main process writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import StageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


T = TypeVar("T")
TIMEOUT = "PIVOTUNE_TIMEOUT"  # minutes that a process waits for the others


class PeerFailed(StageError):
    """Another process has failed; its own message says why."""


@dataclass(frozen=True)
class Processes:
    """This process (rank `index`) among `count`. `device` is assigned by the launcher; None for a single process.

    `sharding`: the launcher uses FSDP2, which shards a fine-tune over the processes.
    """

    count: int = 1
    index: int = 0
    device: torch.device | None = None
    sharding: bool = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.index == 0

    def shares(self, sizes: Sequence[int]) -> list[slice]:
        """This process's part of each of several batches: together they are split into `count` contiguous shards.

        The shards of all processes contain every example once; their sizes differ by at most one.
        """
        total, starts = sum(sizes), [0, *accumulate(sizes)]
        low, high = total * self.index // self.count, total * (self.index + 1) // self.count
        return [slice(max(low, a) - a, max(min(high, b), max(low, a)) - a) if high > a and low < b else slice(0, 0)
                for a, b in pairwise(starts)]  # fmt: skip

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors: the same bits in each of them."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        with peer_errors():
            added: Tensor = reduce(tensor, "sum")
        return added

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in float64."""
        if self.count == 1:
            return list(values)
        import torch

        return self.sum(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def main_number(self, value: float) -> float:
        """The main process's number."""
        return self.sum_numbers([value if self.main else 0.0])[0]

    def any(self, here: bool) -> bool:
        """Whether it is true in at least one process."""
        return self.sum_numbers([float(here)])[0] > 0

    def gather(self, value: T) -> list[T]:
        """Every process's value, in their order."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        with peer_errors():
            found: list[T] = gather_object([value])
        return found

    def gather_to_main(self, value: T) -> list[T]:
        """Every process's value, in their order, in the main process only; they are sent one by one."""
        if self.count == 1:
            return [value]
        from accelerate.utils import broadcast_object_list

        found = []
        for owner in range(self.count):
            packet = [value if owner == self.index else None]
            with peer_errors():
                broadcast_object_list(packet, from_process=owner)
            found += packet if self.main else []
        return found  # type: ignore[return-value]

    def broadcast(self, tensor: Tensor, owner: int) -> None:
        """Send the values that a contiguous tensor has in one process (`owner`) to all."""
        if self.count > 1 and tensor.numel():
            from accelerate.utils import broadcast

            with peer_errors():
                broadcast(tensor, from_process=owner)

    def from_main(self, work: Callable[[], T]) -> T:
        """The result of `work` in the main process; the others wait for it, and fail if it fails."""
        if self.count == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        packet: list[Any] = [None, None]
        failed: BaseException | None = None
        if self.main:
            try:
                packet[0] = work()
            except BaseException as error:  # noqa: BLE001 (whatever it was, the others must not wait for it)
                failed, packet[1] = error, f"{type(error).__name__}: {error}"
        with peer_errors():
            broadcast_object_list(packet)
        if failed is not None:
            raise failed
        if packet[1] is not None:
            raise PeerFailed(f"process {self.index} stops with the main process: {packet[1]}")
        result: T = packet[0]
        return result

    @contextmanager
    def together(self) -> Iterator[None]:
        """A failure in one process becomes one in all, at the end of the block: none waits for a process that failed.

        The block itself must not communicate with other processes.
        """
        if self.count == 1:
            yield
            return
        failed: BaseException | None = None
        try:
            yield
        except BaseException as error:  # noqa: BLE001 (raised below)
            failed = error
        try:
            ended = self.any(failed is not None)
            texts = self.gather(f"{type(failed).__name__}: {failed}" if failed is not None else "") if ended else []
        except PeerFailed:
            if failed is not None:  # what failed here says more than that another process has left
                raise failed from None
            raise
        if failed is not None:
            raise failed
        first = next((number for number, text in enumerate(texts) if text), None)
        if first is not None:
            raise PeerFailed(f"process {first} of {self.count} has failed: {texts[first]}")


SINGLE_PROCESS = Processes()


def peer_failure(error: BaseException) -> PeerFailed | None:
    """The message for an error of torch's communication, such as FSDP gathering a weight; None for others."""
    from torch import distributed

    kinds = getattr(distributed, "DistError", ())  # gloo's own are plain errors
    return _peer_failed(error) if isinstance(error, kinds) or "/gloo/" in str(error) else None


def _peer_failed(error: BaseException) -> PeerFailed:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return PeerFailed(
        f"another process has ended or timed out (see its own message; here: {line[:200]}); "
        f"the same command resumes from the last checkpoint; {TIMEOUT} sets how many minutes to wait"
    )


@contextmanager
def peer_errors() -> Iterator[None]:
    """StageError when the other processes cannot be reached, or do not answer in time."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise _peer_failed(error) from error


BUCKET = 2**24  # values that are summed at once: 64 MiB of float32


def sum_gradients(leaves: Sequence[Tensor], processes: Processes) -> None:
    """Set the `grad` of each leaf to the sum over all processes, in float32.

    It stays None where no process has one. Every process must give the same leaves in the same order.
    """
    if processes.count > 1:
        for bucket in _buckets(leaves):
            _sum_bucket(bucket, processes)


def _sum_bucket(leaves: Sequence[Tensor], processes: Processes) -> None:
    import torch

    there = torch.tensor([leaf.grad is not None for leaf in leaves], dtype=torch.float32, device=processes.device)
    own = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    flat = processes.sum(torch.cat([there, *(one.detach().float().flatten().to(there.device) for one in own)]))
    parts = flat[len(leaves) :].split([leaf.numel() for leaf in leaves])
    for leaf, any_there, part in zip(leaves, flat[: len(leaves)].tolist(), parts, strict=True):
        leaf.grad = part.view_as(leaf).to(leaf.device, leaf.dtype) if any_there else None


def _buckets(leaves: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The leaves in groups of `BUCKET` values, or one that is larger."""
    bucket: list[Tensor] = []
    for leaf in leaves:
        if bucket and sum(one.numel() for one in bucket) + leaf.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(leaf)
    if bucket:
        yield bucket
