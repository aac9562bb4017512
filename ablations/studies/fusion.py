"""How does MSFM start: as the figure draws it, or at the identity? The question behind the default of `fusion_init`."""

from __future__ import annotations

from ablations.registry import Ablation, Study, register

_FUSION_INIT = "model.adapter.fusion_init"


def _start(name: str, description: str) -> Ablation:
    return Ablation(name, {_FUSION_INIT: name}, (_FUSION_INIT,), description)


FUSION = register(
    Study(
        name="fusion",
        question="Does MSFM as the figure draws it restore better than MSFM that starts at the identity?",
        reference=_start("residual", "F' = F + sum of SAFTs, zero at step 0: the prior is left as it was"),
        ablations=(_start("as_drawn", "F' = sum of SAFTs of GroupNorm(F): the prior's features are replaced"),),
        primary_metric="ssim_y",
    )
)
