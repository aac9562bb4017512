"""What every worker process does first."""

from __future__ import annotations

import os
import signal
import threading


def use_one_thread() -> None:
    """The workers are the parallelism: threads of OpenCV and torch in each of them would fight for the same cores.

    0, not 1: in a fork of a process whose OpenCV threads have worked, 1 waits for threads that the fork does not have.
    """
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def start_worker(worker: int) -> None:
    """Begin a worker of a DataLoader: one thread, and signals are its parent's affair.

    Ctrl-C, `timeout` and SLURM send them to all processes of a training, which still needs the batches of its last step
    to stop in good order. Workers end when their parent says so, or has died.

    Args:
        worker: its number.
    """
    use_one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
