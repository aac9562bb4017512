"""What should an adapter be trained for: to denoise, or to restore in one step, and by which terms?

Judged by DISTS, which the reference's loss does not hold; the arm `dists` trains on its judge.
"""

from __future__ import annotations

from typing import Any

from ablations.registry import Ablation, Study, change, register
from ablations.studies.prior_selection import NOISE

_OBJECTIVE, _SAMPLER, _ADAPTER = "model.objective", "model.sampler", "model.adapter"
_TERMS = {"l1": 1.0, "lpips_alex": 2.0}
_ONE_STEP: dict[str, Any] = {
    f"{_OBJECTIVE}.kind": "one_step", f"{_OBJECTIVE}.terms": _TERMS, f"{_SAMPLER}.num_steps": 1,
    f"{_SAMPLER}.start": "noiseless_lq", f"{_SAMPLER}.start_fraction": 0.25,
}  # fmt: skip
_MAPS = ["hed", "depth", "segmentation"]
_CRITIC = {"features": "tiny"}


def _terms(
    name: str, description: str, hypothesis: str, terms: dict[str, float], critic: dict[str, Any] | None = None
) -> Ablation:
    more = {} if critic is None else {f"{_OBJECTIVE}.critic": critic}
    return change(name, {f"{_OBJECTIVE}.terms": terms, **more}, description, hypothesis)


OBJECTIVE = register(
    Study(
        name="objective",
        question="What should an adapter be trained for: to denoise, or to restore in one step, and by which terms?",
        reference=change("l1_lpips", _ONE_STEP, "one step from the latent of lq, L1 and LPIPS"),
        ablations=(
            change(
                "denoise",
                {
                    f"{_OBJECTIVE}.kind": None, f"{_OBJECTIVE}.terms": None, f"{_OBJECTIVE}.weights_dir": None,
                    f"{_SAMPLER}.num_steps": 4, f"{_SAMPLER}.start": "lq", f"{_SAMPLER}.start_fraction": 0.8,
                },
                "the diffusion loss, sampled in four steps from the noised latent of lq",
                "Worse: its samples carry a small prior's errors, which no loss on the image mends.",
            ),
            _terms("l1", "L1 alone", "Worse in DISTS, better in PSNR: L1 asks for the mean.", {"l1": 1.0}),
            _terms(
                "lpips", "LPIPS alone", "Worse: colours and flat areas, which LPIPS hardly sees, drift.",
                {"lpips_alex": 2.0},
            ),
            _terms(
                "dists", "L1 and DISTS", "Better, by the measure that it trains on; what LPIPS says of it counts.",
                {"l1": 1.0, "dists": 2.0},
            ),
            _terms(
                "latent", "LPIPS and the distance of latents in place of L1", "No difference: both ask for the mean.",
                {"latent": 1.0, "lpips_alex": 2.0},
            ),
            _terms("edge", "with the edge term", "Slightly better: sharper contours.", {**_TERMS, "edge": 1.0}),
            _terms(
                "frequency", "with the frequency term", "No difference: it weighs what L1 weighs.",
                {**_TERMS, "frequency": 1.0},
            ),
            _terms(
                "csd", "with classifier score distillation",
                "Worse: guidance of 7.5 pulls towards contrasts that a small prior exaggerates.",
                {**_TERMS, "csd": 0.1}, {},
            ),
            _terms(
                "vsd", "with variational score distillation",
                "No difference: a few hundred steps teach the critic next to nothing.", {**_TERMS, "vsd": 0.1}, {},
            ),
            _terms(
                "gan", "with a discriminator on the tiny CLIP's tokens", "Slightly better: texture in place of blur.",
                {**_TERMS, "gan": 0.1}, _CRITIC,
            ),
            change(
                "few_step", {f"{_OBJECTIVE}.kind": "few_step", f"{_SAMPLER}.num_steps": 2},
                "two steps, gradients through both", "No difference: the second step is trained for the same.",
            ),
            change(
                "noised", {f"{_SAMPLER}.start": "lq"}, "from the noised latent of lq",
                "Worse: noise hides what is left of lq, and one step returns the mean of what may lie below it.",
            ),
            change(
                "lora", {f"{_ADAPTER}.prior_lora": 4}, "with a LoRA of rank 4 on the prior",
                "Better: the frozen prior reads the latent of lq as a noised one, and has to unlearn it.",
            ),
            change(
                "guidance", {f"{_ADAPTER}.guidance": _MAPS}, "with edges, depth and segmentation of lq",
                "Slightly better: maps of lq tell little that lq does not.",
            ),
            change(
                "lora_guidance", {f"{_ADAPTER}.prior_lora": 4, f"{_ADAPTER}.guidance": _MAPS},
                "with the LoRA and with the maps", "As lora and guidance together.",
            ),
            change(
                NOISE, {f"{_ADAPTER}.guidance": [NOISE]}, "with a map that says nothing of the image",
                "Not better: there is nothing to learn from it.",
            ),
        ),
        primary_metric="dists",
        controls={NOISE: "negative"},
    )
)  # fmt: skip
