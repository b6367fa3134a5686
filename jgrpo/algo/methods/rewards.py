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
        correction="is_token",
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
        plan="predict",
        expert_coef=1.0,
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=10.0,
        paper="MASA, arXiv:2510.03259",
        evidence="authors' meta_cog.py read; the gate from third-party notes",
        departs="The words that ask for predictions (context.predict) are ours; of notions only a "
        "final s is cut to make them singular. Predictions gate and shorten solutions with plan "
        "predict_first alone (the released code does not). Those that are imitated (a batch is as "
        "many as a step has prompts) are a term of the next step's first update, of weight 1 "
        "(assumed); their length is divided by the number of right solutions (the release: of "
        "all). In a loop of your own: columns of predictions from algo.meta_rewards, one reward of "
        "solutions.",
        summary="Lets the model predict its own solutions in a second group, and rewards that.",
    ),
    "train_long_think_short": Method(
        name="train_long_think_short",
        shape="budget_triangle",
        plan="budget",
        paper="Train Long, Think Short, arXiv:2508.08940",
        evidence="paper",
        departs="The weight of the format (.1) is the rest of the published two. The sentence that "
        "tells the budget (context.budget) is ours. Held-out prompts are asked without it; "
        "plan uniform leaves it out of training too. Cuts are at the paper's 150 steps: set "
        "budget_every_steps.",
        summary="A length reward around a token budget that shrinks while the run goes on.",
    ),
    "grpo_lambda": Method(
        name="grpo_lambda",
        shape="lambda_switch",
        paper="GRPO-lambda, arXiv:2505.18086",
        evidence="weak: read through notes",
        departs="alpha = .2 is assumed, and so is the population std of the lengths.",
        summary="Fines length only for the prompts that the policy already solves most often.",
    ),
    "posterior_grpo": Method(
        name="posterior_grpo",
        shape="gated_sum",
        weights="token_mean",
        clip_high=0.28,
        paper="Posterior-GRPO, arXiv:2508.05170",
        evidence="weak: formula read through notes",
        departs="The reasoning score is a reward function of the user's.",
        summary="Pays for good reasoning only where the outcome is right.",
    ),
    "format_length": Method(
        name="format_length",
        shape="surrogate",
        penalty="k3",
        kl_coef=0.001,
        paper="Surrogate signals, arXiv:2505.19439",
        evidence="authors' reward file executed",
        departs="L is the run's longest completion (theirs: 3072 tokens).",
        summary="Learns without labels, from format and length alone.",
    ),
}
