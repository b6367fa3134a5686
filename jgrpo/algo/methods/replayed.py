"""Methods that train completions of earlier steps once more.

Slots and constants that a row does not name are those of `grpo` without its KL penalty.
"""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "prioritized_replay": Method(
        name="prioritized_replay",
        plan="replay",
        replay="buckets",
        reshape="offset",
        scale="none",
        weights="constant_length",
        constant_length_tokens=8192,
        paper="ExGRPO, arXiv:2510.02245",
        evidence="authors' sampler executed, their loss settings and script read",
        departs="Fresh completions stay clipped when others begin to come back (the release stops "
        "clipping; with one update a step nothing is clipped either way). The store is a ring of "
        "replay_capacity completions, those cut off left out, and the entropies of the "
        "replay_candidates newest of a prompt are compared (the release keeps and compares all). "
        "The loss is divided by the number of completions too, and there is no entropy bonus (the "
        "release's is method.bonus=entropy method.entropy_coef=0.001). Assumed: once begun it goes "
        "on, and a success count includes the row that came back. Set constant_length_tokens to "
        "your rollout.max_completion_tokens.",
        summary="Trains right completions of earlier steps once more, most of all those of prompts "
        "solved half of the time.",
    ),
}
