"""How should be sampled? One adapter per seed, restored with in many ways: nothing is trained again."""

from __future__ import annotations

from typing import Any

from ablations.registry import Ablation, Study, change, register

_SAMPLER = "model.sampler"
_AS_TRAINED: dict[str, Any] = {
    "num_steps": 4, "start": "lq", "start_fraction": 0.8, "guidance_scale": 1.0, "positive_prompt": "",
    "negative_prompt": "",
}  # fmt: skip
# SeeSR's prompts (its test_seesr.py).
_POSITIVE, _NEGATIVE = "clean, high-resolution, 8k", "dotted, noise, blur, lowres, smooth"


def _sampled(name: str, description: str, hypothesis: str, **fields: Any) -> Ablation:
    return change(name, {f"{_SAMPLER}.{field}": value for field, value in fields.items()}, description, hypothesis)


SAMPLING = register(
    Study(
        name="sampling",
        question="From where, in how many steps and with how much guidance by the words does one adapter restore best?",
        reference=_sampled("steps_4", "four steps from the noised lq, no classifier-free guidance", "", **_AS_TRAINED),
        ablations=(
            _sampled(
                "steps_1", "one step", "Worse: one step returns the mean of what is possible, which is smooth.",
                num_steps=1,
            ),
            _sampled("steps_2", "two steps", "Slightly worse, for the same reason as one step.", num_steps=2),
            _sampled(
                "steps_8", "eight steps", "Slightly better: DDIM's error falls with the length of its steps.",
                num_steps=8,
            ),
            _sampled(
                "steps_16", "sixteen steps",
                "No better than eight: by then the errors of the network outweigh those of the steps.", num_steps=16,
            ),
            _sampled(
                "from_50", "from half of the schedule",
                "Worse: so little noise leaves much of the degradation of lq in place.", start_fraction=0.5,
            ),
            _sampled(
                "from_100", "from the end of the schedule",
                "Slightly worse: lq is almost gone from the start, and layout and colours have to be found again.",
                start_fraction=1.0,
            ),
            _sampled(
                "from_noise", "from noise alone",
                "The same as from_100: at the end of the schedule next to nothing of lq is left in either.",
                start="noise", start_fraction=1.0,
            ),
            _sampled(
                "cfg_2", "classifier-free guidance of 2",
                "Slightly better: tags that are more heeded give textures that are more of their kind.",
                guidance_scale=2.0,
            ),
            _sampled(
                "cfg_5", "classifier-free guidance of 5, near SeeSR's",
                "Worse: a small prior overshoots into contrasts that hq does not have.", guidance_scale=5.0,
            ),
            _sampled(
                "positive_prompt", "SeeSR's words appended to the tags",
                "No better: the tiny prior has never read these words, so they can only disturb.",
                positive_prompt=_POSITIVE,
            ),
            _sampled(
                "negative_prompt", "SeeSR's words instead of the empty prompt, at a guidance of 2",
                "No better than cfg_2: the tiny prior has never read these words either.",
                guidance_scale=2.0, negative_prompt=_NEGATIVE,
            ),
        ),
        primary_metric="fsim",  # more steps and guidance put texture where one step is smooth, and SSIM prefers smooth
    )
)  # fmt: skip
