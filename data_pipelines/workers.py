"""What every worker process does first."""

from __future__ import annotations


def use_one_thread(worker: int = 0) -> None:
    """The workers are the parallelism: threads of OpenCV and torch in each of them would fight for the same cores.

    0, not 1: in a fork of a process whose OpenCV threads have worked, 1 waits for threads that the fork does not have.

    Args:
        worker: its number, which a DataLoader gives.
    """
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
