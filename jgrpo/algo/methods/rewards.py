"""Methods that change the reward, or take several of them.

Constants and evidence are those of the papers and of the code their authors (or verl and TRL)
published; "executed" means that formula and code gave the same loss and gradient. Slots and
constants that a row does not name are those of `grpo` without its KL penalty.
"""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "gdpo": Method(
        name="gdpo",
        combine="sum",
        post="batch_zscore",
        scale_eps=0.0001,
        post_eps=0.0001,
        penalty="k3",
        kl_coef=0.04,
        paper="GDPO, arXiv:2601.05242",
        evidence="authors' fork of TRL read; the token form (post token_whiten) executed against "
        "verl",
        departs="KL and clip range are grpo's.",
        summary="Several rewards: normalises each in its group, adds them, then normalises over "
        "the batch.",
    ),
    "mo_grpo": Method(
        name="mo_grpo",
        combine="sum",
        scale_eps=1e-06,
        penalty="k3",
        kl_coef=0.04,
        paper="MO-GRPO, arXiv:2509.22047",
        evidence="weak: third-party notes",
        departs="ddof 1 and eps 1e-6 are assumed. KL and clip range are grpo's.",
        summary="Several rewards: the sum of their z-scores, so that none dominates by its range.",
    ),
    "multi_objective_grpo": Method(
        name="multi_objective_grpo",
        shape="weighted_sum",
        penalty="k3",
        kl_coef=0.04,
        paper="multi-objective GRPO with one multi-label reward model",
        evidence="weak: abstract only",
        departs="The weights are not published: all 1. KL and clip range are grpo's.",
        summary="Several rewards: their weighted sum is the reward.",
    ),
    "c_grpo": Method(
        name="c_grpo",
        shape="rubric",
        veto="is_token",
        is_low=0.5,
        is_high=2.0,
        rubric_reward_ratio=0.3,
        paper="C-GRPO (CaRR), arXiv:2601.06021",
        evidence="authors' sglang_rollout.py read; normalised form from the paper",
        departs="The paper's form. With its published flags the code does not normalise the "
        "rubric score: shape rubric_raw. No KL is stated: none.",
        summary="Ranks correct answers by how well they are supported.",
    ),
    "fgrpo": Method(
        name="fgrpo",
        combine="multipliers",
        post="batch_zscore",
        tracker="multipliers",
        penalty="k3",
        kl_coef=0.001,
        scale_eps=1e-06,
        post_eps=1e-06,
        dual_lr=0.05,
        dual_max=5.0,
        dual_init=1.0,
        dual_thresholds=(0.95, 0.95, 0.7),
        dual_min_samples=8,
        paper="Faithful GRPO, arXiv:2604.08476",
        evidence="paper read in full",
        departs="ddof 1, eps 1e-6, whitening over the sequences of the batch and the k3 estimator "
        "are assumed. The first reward column is the task, the others are constrained.",
        summary="Maximises a task reward under bounds on the means of others, by dual ascent.",
    ),
    "unlikeliness": Method(
        name="unlikeliness",
        shape="unlikeliness",
        penalty="k3",
        kl_coef=0.1,
        rank_penalty=0.25,
        paper="Rewarding the unlikely, arXiv:2506.02355",
        evidence="authors' ray_lean_trainer.py read",
        departs="Ties rank in order of row. The scripts take two passes over a step: "
        "optim.epochs_per_step=2.",
        summary="Favours rare correct completions over those the model writes anyway.",
    ),
    "weighted_grpo": Method(
        name="weighted_grpo",
        shape="outcome_weight",
        lambda_neg=1.0,
        penalty="k3",
        kl_coef=0.04,
        paper="Weighted GRPO with bidirectional pairing, arXiv:2602.03452",
        evidence="weak: third-party notes",
        departs="lambda_neg is not published, and with group statistics it has no effect (any "
        "two-valued map is undone). The pairing of prompts is algo.opposite_pair; the loop draws "
        "uniformly.",
        summary="Weighs rare failures on easy prompts and rare successes on hard ones.",
    ),
    "masa": Method(
        name="masa",
        shape="column_mean",
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=10.0,
        paper="MASA, arXiv:2510.03259",
        evidence="authors' meta_cog.py read; the gate from third-party notes",
        departs="The reward and its loss; meta rollouts, gate (algo.predicted_trivial) and length "
        "cut-off are the loop's. Columns of meta rollouts come from algo.meta_rewards; solutions "
        "have one reward.",
        summary="Rewards correct predictions about the model's own solutions.",
    ),
}
