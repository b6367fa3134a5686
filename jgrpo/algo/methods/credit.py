"""Methods that change the baseline, the scale, or who is compared with whom, and how often.

Constants and evidence are those of the papers and of the code their authors (or verl and TRL)
published; "executed" means that formula and code gave the same loss and gradient. Slots and
constants that a row does not name are those of `grpo` without its KL penalty.
"""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "bnpo": Method(
        name="bnpo",
        shape="unit_range",
        scale="beta_density",
        combine="mean",
        weights="sequence_sum",
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=10.0,
        min_value=0.0,
        max_value=1.0,
        paper="BNPO, arXiv:2506.02864",
        evidence="executed against the authors' compute_bnpo_outcome_advantage",
        departs="Equal pass rates everywhere give alpha = beta = 1 (the official code divides by "
        "zero). A group of one gets 0. Several reward columns share one range.",
        summary="Divides by a Beta density fitted to the batch's pass rates, which minimises the "
        "gradient's variance.",
    ),
    "mc_grpo": Method(
        name="mc_grpo",
        base="group_median",
        scale="group_mad",
        post="drop_pivot",
        scale_eps=0.001,
        penalty="k3",
        kl_coef=0.04,
        paper="MC-GRPO, arXiv:2601.22582",
        evidence="statistics executed against the authors' trainers with torch's median; the "
        "trainers read",
        departs="Training runs sample rollout.group_size + 1 completions (G + 1). Of equal medians "
        "the first row is dropped. The gsm trainer's rescaling is post drop_pivot_rescaled.",
        summary="For few completions per prompt: a median baseline, whose sign does not flip with "
        "one outlier.",
    ),
    "ngrpo": Method(
        name="ngrpo",
        base="virtual_mean",
        scale="virtual_std",
        weights="token_mean",
        sampler="unsolved",
        clip_low=0.16,
        clip_high=0.24,
        max_reward=1.0,
        add_max_reward_num=1,
        paper="NGRPO, arXiv:2509.18851",
        evidence="executed against the authors' compute_ngrpo_outcome_advantage; training script "
        "read",
        departs="A group of one is treated as any other (the code gives it mean 0 and deviation "
        "1).",
        summary="Learns from all-wrong groups by imagining one perfect completion.",
    ),
    "spo": Method(
        name="spo",
        base="tracker",
        scale="none",
        post="batch_zscore",
        tracker="beta",
        weights="token_mean",
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=10.0,
        post_eps=1e-08,
        rho_min=0.875,
        rho_max=0.96,
        half_drift=0.06,
        draw="priority",
        draw_candidates=4,
        paper="SPO, arXiv:2509.13232",
        evidence="verl-recipe spo_ray_trainer.py and train.sh read",
        departs="One completion per prompt. Prompts are drawn by draw priority from "
        "draw_candidates = 4 for each (the paper's number is not known). A batch of one gets 0.",
        summary="One completion per prompt: a tracker that forgets is the baseline.",
    ),
    "stratified_grpo": Method(
        name="stratified_grpo",
        base="stratum_mean",
        scale="stratum_std",
        post="blend_group",
        scale_ddof=0,
        scale_eps=1e-06,
        stratum_blend=0.5,
        penalty="k3",
        kl_coef=0.04,
        paper="Stratified GRPO, arXiv:2510.06214",
        evidence="weak: third-party notes",
        departs="The blend, ddof, eps and the rule for a stratum of one are not published: 0.5, "
        "0, 1e-6 and advantage 0 are assumed.",
        summary="Compares a completion with those of the same kind only, such as the same number "
        "of searches.",
    ),
    "tempo": Method(
        name="tempo",
        post="prefix_td",
        clip_low=0.2,
        clip_high=0.28,
        paper="TEMPO, arXiv:2509.18314",
        evidence="executed against the authors' core_algos.py",
        departs="A group of one gets 0 (the official code: nan).",
        summary="Credits single tokens by the value of the prefixes that completions of a group "
        "share.",
    ),
    "xrpo": Method(
        name="xrpo",
        post="novelty",
        novelty_coef=2.5,
        novelty_clip=0.5,
        allocate="xrpo",
        rollouts_min=2,
        rollouts_max=128,
        allocation_phases=3,
        allocation_bonus=0.1,
        confidence_alpha=0.05,
        penalty="k3",
        kl_coef=0.04,
        paper="XRPO, arXiv:2510.06672",
        evidence="weak: reviews and third-party code",
        departs="Form and weight of the allocation's bonus are assumed, and that the mean log-prob "
        "is taken over the whole group. Prompts are not asked again with solved examples.",
        summary="Rewards correct completions that were unlikely.",
    ),
    "v0_5": Method(
        name="v0_5",
        base="prior",
        scale="none",
        allocate="v0_5",
        tracker="success",
        prior_noise=1.0,
        rollouts_min=4,
        rollouts_max=16,
        rollout_cost=0.00390625,
        penalty="k3",
        kl_coef=0.04,
        paper="V0.5, arXiv:2603.10848",
        evidence="weak: third-party notes; stop rule and scale reconstructed",
        departs="No scale is stated after the baseline: none is assumed. Rewards are -1 and 1 "
        "(prior_noise 0.25 for 0 and 1). In training runs the prediction is the prompt's mean "
        "reward when it was last asked, in place of a value model; a prompt never asked has none.",
        summary="Shrinks the mean of a few completions towards the prediction of a value model.",
    ),
    "v0": Method(
        name="v0",
        allocate="v0",
        tracker="success",
        rollouts_min=2,
        rollouts_max=128,
        penalty="k3",
        kl_coef=0.04,
        paper="V0, arXiv:2602.03584",
        evidence="weak: third-party notes; the authors' repository has the value model only",
        departs="In training runs the success rate is that of the prompt when it was last asked, "
        "in place of a frozen value model; unknown prompts get an equal share. Greedy as in the "
        "paper; allocate v0_exact is optimal.",
        summary="GRPO whose budget follows success rates that are predicted before sampling.",
    ),
    "knapsack": Method(
        name="knapsack",
        allocate="knapsack",
        tracker="success",
        rollouts_min=2,
        rollouts_max=128,
        penalty="k3",
        kl_coef=0.04,
        paper="Knapsack RL, arXiv:2509.25849",
        evidence="weak: third-party notes; no official code found",
        departs="Greedy in place of dynamic programming, which is exact here. Unknown prompts get "
        "an equal share (assumed).",
        summary="GRPO whose budget of completions goes where a useful gradient is likely.",
    ),
}
