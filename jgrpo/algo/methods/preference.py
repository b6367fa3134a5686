"""Weak supervision: a preference model learned from outcomes, and rewards of steps by it."""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "ws_preference": Method(
        name="ws_preference",
        aux="preference",
        paper="WS-GRPO, arXiv:2602.17025, phase I",
        evidence="weak: read through notes; no code released",
        departs="Assumed: the encoder is the policy itself (mean of its last hidden states over "
        "the prompt's last token and the completion's, without gradient), one hidden layer of 512 "
        "rectified units without a bias behind it, all pairs of a prompt. Completions are sampled "
        "anew in every step, where the paper collects them once.",
        summary="Trains a preference model on right and wrong completions of the same prompt; the "
        "policy stays as it is.",
    ),
    "grpo_care": Method(
        name="grpo_care",
        shape="care",
        scale_eps=0.0001,
        paper="GRPO-CARE, arXiv:2506.16141",
        evidence="authors' grpo_trainer_ref_ema.py executed for the bonus",
        departs="The answer is the last segment of a completion, its end included (the release "
        "reads an answer tag). The margin is that of the video setting.",
        summary="Pays right answers more whose reasoning makes a slow copy of the policy expect "
        "them.",
    ),
    "ws_grpo": Method(
        name="ws_grpo",
        shape="weak_mean",
        loss_on_injected=0.0,
        paper="WS-GRPO, arXiv:2602.17025, phase II",
        evidence="weak: read through notes; no code released",
        departs="Assumed: the penalty of 1, which weight is the outcome's (5) and which the steps' "
        "(1), and that steps end at rollout.segment_mark; an end of text behind the last mark is a "
        "step. The encoder is the policy that the run began with. No KL is stated: none. Ours, off "
        "unless asked for: plan stop, which ends a completion behind a step that the model doubts "
        "(r_k < stop_below, from step step_low on) by the exit phrase, which is not trained, and "
        "an answer; it draws whole completions first.",
        summary="Rewards steps that a preference model says have helped, and fines completions of "
        "too few or too many steps.",
    ),
}
