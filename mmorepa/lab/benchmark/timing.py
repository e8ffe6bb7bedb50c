"""Takes time on a CPU and a GPU alike, and runs what is compared in turn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch

from ..scaffold import reason_of

#: Seconds of one run, by what they were spent on.
Sample = Mapping[str, float]

#: A name and work.
Part = tuple[str, Callable[[], None]]


class Clock:
    """Takes the time of consecutive parts of work on one device.

    On a GPU marks are CUDA events, so that taking them makes nothing wait. A part then lasts from
    the moment the GPU comes to its beginning to the moment it comes to its end.

    Args:
        device (str | torch.device): Where the work is done.
    """

    def __init__(self, device: str | torch.device):
        self.device = torch.device(device)

    @property
    def is_cuda(self) -> bool:
        """Whether the work is done by a GPU."""
        return self.device.type == 'cuda'

    def mark(self):
        """This moment in the work."""
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Return when all work is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def now(self) -> float:
        """Wait for all work, then give the time of day of the process, in seconds."""
        self.wait()
        return time.perf_counter()

    def between(self, begin, end) -> float:
        """Seconds from one mark to another; on a GPU both have to be reached."""
        return begin.elapsed_time(end) / 1e3 if self.is_cuda else end - begin

    def timed(self, parts: Sequence[Part], steps: int) -> dict[str, float]:
        """Run parts of work one after the other, several times over.

        Args:
            parts (Sequence[Part]): In order; a name may come more than once.
            steps (int): How often.

        Returns:
            dict[str, float]: Seconds of each name, divided by ``steps``; and as ``'step'`` those
            from the moment when the device has nothing to do to the moment when it has nothing to
            do again, likewise.
        """
        began = self.now()
        marks = [self.mark()]
        for _ in range(steps):
            for _, work in parts:
                work()
                marks.append(self.mark())
        whole = self.now() - began
        sample: dict[str, float] = {}
        for (name, _), begin, end in zip(steps * list(parts), marks, marks[1:]):
            sample[name] = sample.get(name, 0.0) + self.between(begin, end) / steps
        return {**sample, 'step': whole / steps}


def run_in_turn(
    actions: Mapping[Hashable, Callable[[], Sample]],
    repeats: int,
    warm_up: int,
    record: Callable[[Hashable, Sample], None],
    fail: Callable[[Hashable, str], None],
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run every action once in each repeat, the first one first in one repeat and last in the next.

    So what makes the machine slower for a while makes it slower for all.

    Args:
        actions (Mapping[Hashable, Callable[[], Sample]]): By name.
        repeats (int): How often each is recorded.
        warm_up (int): Repeats before, which are not recorded.
        record (Callable[[Hashable, Sample], None]): Gets a name and its sample, once a repeat.
        fail (Callable[[Hashable, str], None]): Gets the name of an action that raised an
            exception, and a line that says why. It is not run again; the others go on.
        tick (Callable[[], None]): Called after each run.
    """
    alive = dict(actions)
    for repeat in range(-warm_up, repeats):
        for name in rotated(list(alive), repeat):
            try:
                sample = alive[name]()
            except Exception as error:
                fail(name, reason_of(error))
                del alive[name]
            else:
                if repeat >= 0:
                    record(name, sample)
            tick()


def rotated(names: list, by: int) -> list:
    """``names`` beginning with another one.

    Example:
        >>> rotated(['a', 'b', 'c'], 1)
        ['b', 'c', 'a']
    """
    by = by % len(names) if names else 0
    return names[by:] + names[:by]


@contextlib.contextmanager
def failing_to(failures: dict[str, str], what: str) -> Iterator[None]:
    """Note an exception under ``what``, in one line, and go on."""
    try:
        yield
    except Exception as error:
        failures[what] = reason_of(error)
