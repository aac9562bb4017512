"""How strong should the degradation of the training be? All are evaluated on StableSR's, which made DIV2K-Val."""

from __future__ import annotations

from ablations.registry import Ablation, Study, change, register

_TRAINING, _EVALUATION = "data.init_args.degradation", "data.init_args.eval_degradation"
_REFERENCE = {_TRAINING: "realesrgan_strong", _EVALUATION: "stablesr_mild"}


def _trained_with(preset: str, description: str, hypothesis: str, name: str = "") -> Ablation:
    return change(name or preset, {_TRAINING: preset}, description, hypothesis)


DEGRADATION = register(
    Study(
        name="degradation",
        question="Evaluated on one degradation, which one is best to train with?",
        reference=change("realesrgan_strong", _REFERENCE, "trained stronger than evaluated, as the field does"),
        ablations=(
            _trained_with(
                "stablesr_mild", "trained as it is evaluated",
                "Better in fidelity: the adapter learns to undo just what it will meet, and smooths less than one that "
                "expects worse.",
            ),
            _trained_with(
                "first_order", "blur, noise and JPEG once each, with the numbers of the strong one",
                "No difference: once is enough to cover most of a mild second-order degradation.",
            ),
            _trained_with(
                "bicubic", "no blur, noise or JPEG at all",
                "Worse by far: noise and blocks were never seen, and are restored as if they were texture.",
                name="bicubic_only",  # bicubic is the baseline of every study
            ),
        ),
        primary_metric="ssim_y",
        controls={"bicubic_only": "negative"},
    )
)  # fmt: skip
