"""How far a student's raw outputs are from its teacher's, one loss per kind of output, all mean values."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_SURE = 1e-4


def edge_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the student's edge probabilities from the teacher's, of logits (B, 1, h, w)."""
    return _bernoulli_divergence(student, teacher)


def _bernoulli_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy without the teacher's own entropy: nothing is left when both agree."""
    goal = teacher.sigmoid()
    cross, own = (F.binary_cross_entropy_with_logits(logits, goal) for logits in (student, teacher))
    return cross - own


def edge_divergence(found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The same of every pixel, of maps of probabilities in [0, 1]; what is surer than 1 in 10,000 is taken as that."""
    q, p = (probability.clamp(_SURE, 1 - _SURE) for probability in (found, right))
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def relative_depth_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Scale-and-shift-invariant mean absolute error of inverse depth (B, 1, h, w) (MiDaS, 1907.01341, section 5)."""
    return F.l1_loss(_normalised(student), _normalised(teacher))


def _normalised(inverse: torch.Tensor) -> torch.Tensor:
    """Shift and scale of every image taken out: its median and mean absolute deviation."""
    flat = inverse.flatten(1)
    centred = flat - flat.median(dim=1, keepdim=True).values
    return centred / centred.abs().mean(dim=1, keepdim=True).clamp(min=1e-6)


def absolute_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean absolute error: of normals, and of inverse depth whose scale means something."""
    return F.l1_loss(student, teacher)


def class_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the student's classes from the teacher's, logits (B, K, ...); mean per pixel."""
    per_class = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
    return per_class.sum(1).mean()


def tag_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The same of tag logits (B, T), every tag for itself (as DAPE's, 2311.16518)."""
    return _bernoulli_divergence(student, teacher)


def representation_loss(student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean squared error of every feature map, each in units of the teacher's own mean square, then the mean of all.

    The unit makes coarse and fine features, and networks of other scales, count alike.
    """
    relative = [
        F.mse_loss(own, goal) / goal.square().mean().clamp(min=1e-12)
        for own, goal in zip(student, teacher, strict=True)
    ]
    return torch.stack(relative).mean()
