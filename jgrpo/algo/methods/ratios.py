"""Methods that change the importance ratio, its clip, or the weights of tokens.

Constants and evidence are those of the papers and of the code their authors (or verl and TRL)
published; "executed" means that formula and code gave the same loss and gradient. Slots and
constants that a row does not name are those of `grpo` without its KL penalty.
"""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "dapo": Method(
        name="dapo",
        shape="overlong",
        base="group_mean",
        scale="group_std",
        level="token",
        trust="clip",
        weights="token_mean",
        penalty="none",
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=10.0,
        overlong_buffer_tokens=4096,
        overlong_penalty=1.0,
        sampler="dynamic",
        dynamic_max_rounds=10,
        paper="DAPO, arXiv:2503.14476",
        evidence="loss executed against verl compute_policy_loss_vanilla; sampling and length "
        "penalty read in verl-recipe dapo",
        departs="The dual clip at 10 is the authors' script, not the paper. The paper's rewards "
        "are -1 and 1 (with 0 and 1 the length penalty weighs twice as much) and its length limit "
        "is 20480: set overlong_buffer_tokens to fit yours.",
        summary="GRPO for long reasoning: more room upwards, token mean, mixed groups only, soft "
        "length limit.",
    ),
    "cispo": Method(
        name="cispo",
        shape="overlong",
        base="group_mean",
        scale="group_std",
        level="token",
        trust="cispo",
        weights="token_mean",
        penalty="none",
        clip_low=1.0,
        clip_high=4.0,
        overlong_buffer_tokens=4096,
        overlong_penalty=1.0,
        sampler="dynamic",
        dynamic_max_rounds=10,
        paper="MiniMax-M1, arXiv:2506.13585",
        evidence="loss executed against verl compute_policy_loss_cispo; TRL and paper read",
        departs="The upper bound is not published: 1 + clip_high = 5 is the cap of the ScaleRL "
        "recipe in TRL (which writes it as an absolute 5.0). Sampling and length penalty have "
        "DAPO's constants.",
        summary="Clips the importance weight instead of the update: no token loses its gradient.",
    ),
    "gspo": Method(
        name="gspo",
        base="group_mean",
        scale="group_std",
        level="sequence",
        trust="clip",
        weights="sequence_mean",
        penalty="none",
        clip_low=3e-4,
        clip_high=4e-4,
        paper="GSPO, arXiv:2507.18071",
        evidence="paper read; TRL importance_sampling_level='sequence' read; equal to gspo_token, "
        "which was executed",
        departs="None. The paper does not say how the standard deviation is taken (ours: G - 1, "
        "plus 1e-6).",
        summary="Importance ratio and clipping per sequence, the unit that is rewarded.",
    ),
    "gspo_token": Method(
        name="gspo_token",
        base="group_mean",
        scale="group_std",
        level="sequence_token",
        trust="clip",
        weights="sequence_mean",
        penalty="none",
        clip_low=3e-4,
        clip_high=4e-4,
        paper="GSPO, arXiv:2507.18071",
        evidence="executed against verl compute_policy_loss_gspo",
        departs="verl also caps the log-ratio at 10; ours is bounded by the clamp of token "
        "log-ratios to [-20, 20].",
        summary="GSPO whose advantages may differ between tokens; equals gspo when they do not.",
    ),
    "luspo": Method(
        name="luspo",
        level="sequence",
        weights="sequence_sum",
        clip_low=0.002,
        clip_high=0.0025,
        paper="LUSPO, a neighbour of arXiv:2507.18071",
        evidence="TRL read (loss_type luspo)",
        departs="Empty completions do not count in the mean over sequences (TRL counts them).",
        summary="GSPO whose sequences weigh in proportion to their length.",
    ),
    "gmpo": Method(
        name="gmpo",
        trust="gmpo",
        cliprange=0.4,
        paper="GMPO, arXiv:2507.20673",
        evidence="executed against verl compute_policy_loss_geo_mean; authors' "
        "train_zero_math_gmpo.py read",
        departs="Empty completions do not count in the mean over sequences (verl counts them).",
        summary="Geometric mean of token ratios, each clipped in log space: outlier tokens cannot "
        "dominate.",
    ),
    "sapo": Method(
        name="sapo",
        trust="sapo",
        tau_pos=1.0,
        tau_neg=1.05,
        paper="SAPO, arXiv:2511.20347",
        evidence="executed against verl compute_policy_loss_sapo; TRL read",
        departs="None.",
        summary="A smooth, asymmetric gate in place of the clip.",
    ),
    "vespo": Method(
        name="vespo",
        level="sequence_sum",
        trust="vespo",
        weights="token_mean",
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
        paper="VESPO; formula from TRL",
        evidence="TRL read (get_gamma_weights)",
        departs="The sequence log-ratio is bounded to [-20, 20], beyond which the gate is 0.",
        summary="Weighs log-probs by a gamma-shaped function of the whole sequence's ratio.",
    ),
    "ctpo": Method(
        name="ctpo",
        level="prefix_sum",
        trust="ctpo",
        weights="token_mean",
        la_clip_low=0.025,
        la_clip_high=0.05,
        la_clip_c=0.05,
        clip_ratio_la_power=0.5,
        paper="CTPO, arXiv:2605.07331",
        evidence="executed against the authors' core_algos.py (cumprod-la, geomean-la, cumprod)",
        departs="The correction for the sampler's mismatch (threshold 5) is off: "
        "correction=is_sequence, is_high=5 turns it on.",
        summary="Weighs a token by the ratio of its whole prefix, with bounds that widen with "
        "position.",
    ),
    "rank_grpo": Method(
        name="rank_grpo",
        shape="suffix_dcg",
        combine="keep",
        post="items",
        level="segment",
        weights="token_mean",
        penalty="k3",
        clip_low=0.06,
        clip_high=0.08,
        kl_coef=0.001,
        scale_eps=0.0001,
        paper="Rank-GRPO, arXiv:2510.20150",
        evidence="authors' rank_grpo_trainer.py, reward_funcs.py and train_rank_grpo.py read",
        departs="Tokens are averaged (as TRL's default in the code); the paper averages the ranks "
        "equally. The optional rewards for list length are left out.",
        summary="For ranked lists: every item is an action with its own advantage and ratio.",
    ),
    "mu_grpo": Method(
        name="mu_grpo",
        veto="suffix",
        weights="token_mean",
        clip_low=0.5,
        clip_high=1.0,
        trigger_low=0.75,
        trigger_high=0.0,
        paper="Mu-GRPO, arXiv:2605.17570",
        evidence="weak: abstract only; formula and constants reconstructed",
        departs="The paper's trigger, thresholds and clip range are not known: ratio trigger, "
        "0.75 and 0.5/1.0 are assumed, the trigger token is kept, denominators do not change. "
        "Sampling in four large stale stages is the loop's.",
        summary="For very stale data: wide clips, and no update after a token that went astray in "
        "a bad completion.",
    ),
}
