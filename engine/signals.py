"""Stop signals: SIGTERM and SIGUSR1 of a scheduler, Ctrl-C of a user."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from lib import log

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PATIENCE = 10.0  # seconds that a batch may take to come after a signal: schedulers kill after 30


class Stalled(BaseException):
    """A process with a stop signal waits for a batch in vain. Readers of damaged files do not catch this."""


class Stop:
    """Whether a signal has asked this process to stop. A second Ctrl-C stops it at once.

    The run also stops when its torchrun parent has died, so that no orphan keeps the GPU or the lock.
    """

    def __init__(self) -> None:
        self.signalled = False
        self.is_waiting = False  # for data
        self.interrupted = 0.0  # when Ctrl-C was pressed first
        self.launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0

    @property
    def asked(self) -> bool:
        """Whether the process is to stop."""
        if self.launcher and os.getppid() != self.launcher:
            self.launcher = 0
            self.ask("torchrun has ended")
        return self.signalled

    def ask(self, why: str) -> None:
        """Record a reason to stop."""
        if not self.signalled:
            log.warning("%s: the run saves its state and stops after this step", why)
        self.signalled = True

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Record a signal."""
        now = time.monotonic()
        # the terminal and torchrun both pass on one Ctrl-C
        if number == signal.SIGINT and self.interrupted and now - self.interrupted > 1:
            raise KeyboardInterrupt
        if number == signal.SIGINT and not self.interrupted:
            self.interrupted = now
        again = " (press again to stop at once)" if number == signal.SIGINT else ""
        self.ask(signal.Signals(number).name + again)
        if self.is_waiting:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context of waiting for data: `Stalled` is raised if none arrive in `PATIENCE` after a signal."""
        self.is_waiting = True
        try:
            if self.signalled:
                signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            yield
        finally:
            self.is_waiting = False
            if self.signalled:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def expire(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the waiting for data."""
        if self.is_waiting:
            raise Stalled


@contextlib.contextmanager
def handling_signals(stop: Stop) -> Iterator[Stop]:
    """Context in which signals go to `stop`; afterwards the former handlers are restored."""
    before = {number: signal.signal(number, stop.receive) for number in STOP_SIGNALS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, stop.expire)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals(_: int = 0) -> None:
    """For loader workers: ignore signals to the whole job; end when the training process says so or has died.

    PyTorch's workers look for their parent between batches, and for the parent that they have once they have
    started: one that is stuck, or whose parent died before, would keep memory and the log's pipe for ever.
    """
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this process is a worker
    while os.getppid() == parent.pid:
        if not hasattr(signal, "sigtimedwait"):
            time.sleep(1)
        elif (received := signal.sigtimedwait({signal.SIGTERM}, 1)) and received.si_pid == parent.pid:
            break
    os._exit(0)
