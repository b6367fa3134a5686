"""Methods that choose who is asked, or which of the sampled rows are trained.

Slots and constants that a row does not name are those of `grpo` without its KL penalty.
"""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "pairing": Method(
        name="pairing",
        draw="pairs",
        post="rare_events",
        tracker="success",
        paper="Beyond Variance (bidirectional pairing), arXiv:2602.03452",
        evidence="weak: abstract only",
        departs="Our reading: the bands (1/16 to 1/4 solved, or missed), equal chances within a "
        "band, and the weight 2 on the advantages of such prompts are assumed. Success rates are "
        "those of the last time a prompt was asked.",
        summary="Asks prompts in pairs, one seldom solved and one seldom missed, and weighs them "
        "more.",
    ),
    "vspo": Method(
        name="vspo",
        refill="task_value",
        paper="VSPO, arXiv:2512.07478",
        evidence="weak: abstract only",
        departs="Our reading: task value, draw and the weight of copies are assumed formulas. The "
        "paper's progressive reward is shape progressive.",
        summary="Trains copies of groups of high task value in the place of those without a "
        "gradient.",
    ),
    "microcoder_grpo": Method(
        name="microcoder_grpo",
        row_mask="truncated",
        control="diversity",
        clip_high=0.5,
        paper="MicroCoder-GRPO, arXiv:2603.07777",
        evidence="equation of the row mask read in the authors' README",
        departs="The paper's rule for the temperature has no closed form: its measure (different "
        "4-grams), interval (50 steps), target (.5) and stages (.8, 1, 1.2) are assumed. clip_high "
        "is that of a re-implementation. Not judged wrong: right, or without an answer's form.",
        summary="Spares some long completions that the limit cut off before they were wrong, and "
        "raises the temperature while completions are too much alike.",
    ),
}
