"""The slots of a method, and the names of the functions that may fill them.

The functions stand in the slot modules, whose tables have exactly these names (tests hold them to
it); here they are alone, so that a `Method` can be checked before any of them is imported.
"""

from collections.abc import Mapping

from jgrpo.algo import checks

SLOTS: Mapping[str, tuple[str, ...]] = {
    "shape": (
        *("none", "overlong", "weighted_sum", "column_mean", "unlikeliness", "squash"),
        *("outcome_weight", "rubric", "rubric_raw", "unit_range", "suffix_dcg"),
        *("budget_triangle", "budget_band", "lambda_switch", "surrogate", "gated_sum", "serial"),
        *("care", "weak_mean", "weak_sum", "format_gate", "progressive", "skill_bonus"),
    ),
    "base": (
        *("none", "group_mean", "leave_one_out", "group_median", "length_weighted", "batch_mean"),
        *("stratum_mean", "virtual_mean", "sampled_mean", "tracker", "prior"),
    ),
    "scale": (
        *("none", "group_std", "group_mad", "batch_std", "stratum_std", "virtual_std"),
        *("sampled_std", "beta_density"),
    ),
    "combine": ("none", "sum", "mean", "multipliers", "keep"),
    "post": (
        *("none", "batch_zscore", "token_whiten", "returns", "gae", "blend_group", "drop_pivot"),
        *("drop_pivot_rescaled", "novelty", "anchor", "imitate", "prefix_td", "items"),
        "rare_events",
    ),
    "level": (
        *("token", "sequence", "sequence_token", "segment", "prefix_sum", "prefix_mean"),
        "sequence_sum",
    ),
    "trust": ("clip", "cispo", "linear", "gmpo", "sapo", "vespo", "ctpo"),
    "reshape": ("none", "offset", "quantile", "power"),
    "veto": ("none", "suffix", "off_policy_row", "top_entropy"),
    "correction": ("none", "is_token", "is_mask", "is_sequence"),
    "weights": (
        *("token_mean", "sequence_mean", "sequence_sum", "constant_length", "token_sum"),
        *("sequence_mean_all", "sequence_sum_constant"),
    ),
    "penalty": ("none", "k1", "k2", "k3", "k3_plus"),
    "kl_in": ("loss", "reward", "token_reward"),
    "bonus": ("none", "entropy"),
    "constraint": ("none", "hinge_k1", "hinge_k3"),
    "late": ("none", *checks.COUPLED),
    "tracker": ("none", "beta", "success", "multipliers"),
    "sampler": ("uniform", "dynamic", "unsolved"),
    "allocate": ("uniform", "knapsack", "v0", "v0_exact", "v0_5", "xrpo"),
    "source": ("policy", "reference", "both"),
    "plan": (
        *("uniform", "guided", "guide", "scaffold", "inject", "explain", "refine", "serial"),
        *("replay", "rubric_refine", "feedback", "budget"),
        *("predict", "predict_first", "hinter", "skill", "delegate", "stop"),
    ),
    "guidance": ("adaptive", "linear", "constant"),
    "aux": ("none", "preference"),
    "draw": ("order", "priority", "pairs"),
    "control": ("constant", "diversity"),
    "refill": ("none", "task_value"),
    "replay": ("none", "buckets"),
    "row_mask": ("none", "truncated"),
}
"""Names that each slot accepts, besides `package.module:function`."""
