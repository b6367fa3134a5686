"""Policy gradients with the clip of PPO or none, and supervised learning.

Constants and evidence are those of the papers and of the code their authors (or verl and TRL)
published; "executed" means that formula and code gave the same loss and gradient. Slots and
constants that a row does not name are those of `grpo` without its KL penalty.
"""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "grpo": Method(
        name="grpo",
        base="group_mean",
        scale="group_std",
        level="token",
        trust="clip",
        weights="sequence_mean",
        penalty="k3",
        clip_low=0.2,
        clip_high=0.2,
        kl_coef=0.04,
        paper="DeepSeekMath, arXiv:2402.03300",
        evidence="executed against verl compute_grpo_outcome_advantage and "
        "compute_policy_loss_vanilla; TRL read",
        departs="The paper gives no number for the clip range (0.2 is that of public code) and "
        "does not say how the standard deviation is taken (ours: G - 1, plus 1e-6). Outcome "
        "rewards only. Empty completions do not count in the mean over sequences.",
        summary="Compares each completion with the others of its prompt, so no value network is "
        "needed.",
    ),
    "ppo_clip": Method(
        name="ppo_clip",
        base="none",
        scale="none",
        post="gae",
        weights="token_mean",
        penalty="k1",
        kl_in="token_reward",
        kl_coef=0.001,
        gamma=1.0,
        gae_lambda=0.95,
        value_coef=0.1,
        value_clip=0.2,
        paper="PPO, arXiv:1707.06347",
        evidence="policy loss executed against verl compute_policy_loss_vanilla; advantages and "
        "value loss are the textbook's",
        departs="One completion per prompt (rollout.group_size=1). The critic is a linear read-out "
        "of the policy's hidden states, zero at first; its loss shapes the policy's layers too, as "
        "in the paper's shared network. Values are clipped (public code; not in the paper). "
        "value_coef and value_clip are TRL's; gamma, gae_lambda and the KL coefficient for "
        "language models are not the paper's.",
        summary="The ancestor: clipped ratios with advantages from a value network.",
    ),
    "rloo": Method(
        name="rloo",
        base="leave_one_out",
        scale="none",
        level="token",
        trust="linear",
        weights="sequence_sum",
        penalty="k1",
        kl_in="reward",
        kl_coef=0.03,
        paper="Back to Basics (RLOO), arXiv:2402.14740",
        evidence="baseline executed against verl compute_rloo_outcome_advantage; TRL read",
        departs="kl_coef is TRL's. A group of one gets 0 (verl: the raw reward).",
        summary="REINFORCE with the mean of the other completions as an unbiased baseline.",
    ),
    "reinforce_pp": Method(
        name="reinforce_pp",
        base="none",
        scale="none",
        post="returns",
        weights="token_mean",
        penalty="k1",
        kl_in="token_reward",
        kl_coef=0.01,
        post_eps=1e-08,
        paper="REINFORCE++, arXiv:2501.03262",
        evidence="advantages executed against verl; OpenRLHF read",
        departs="One completion per prompt. The KL coefficient is not fixed by the paper. The "
        "variance divides by n - 1 (verl); OpenRLHF takes the population's.",
        summary="PPO without a critic: returns with a KL penalty per token, normalised over the "
        "whole batch.",
    ),
    "reinforce_pp_baseline": Method(
        name="reinforce_pp_baseline",
        scale="none",
        post="token_whiten",
        weights="token_mean",
        penalty="k2",
        kl_coef=0.001,
        post_eps=1e-08,
        paper="REINFORCE++, arXiv:2501.03262",
        evidence="advantages executed against verl; OpenRLHF read",
        departs="The KL coefficient is not fixed by the paper. A group of one has baseline equal "
        "to its reward (verl: 0).",
        summary="Group mean as baseline, deviation of the whole batch as scale.",
    ),
    "dr_grpo": Method(
        name="dr_grpo",
        base="group_mean",
        scale="none",
        level="token",
        trust="clip",
        weights="constant_length",
        penalty="none",
        clip_low=0.2,
        clip_high=0.2,
        constant_length_tokens=3000,
        paper="Understanding R1-Zero-like training, arXiv:2503.20783",
        evidence="executed against verl (norm_adv_by_std_in_grpo=False); authors' "
        "understand-r1-zero read",
        departs="None. The divisor 3000 is the authors' generation limit: set "
        "constant_length_tokens to yours.",
        summary="GRPO without the division by the standard deviation and by the length, which bias "
        "it by difficulty and length.",
    ),
    "sft": Method(
        name="sft",
        base="none",
        scale="none",
        level="token",
        trust="linear",
        weights="token_mean",
        penalty="none",
        source="reference",
        paper="maximum likelihood; no paper",
        evidence="own derivation: with advantage 1 the loss is the mean negative log-likelihood",
        departs="None. Give reward 1 to every reference solution; another reward weighs its "
        "likelihood.",
        summary="Supervised warm start on the data's worked solutions, in the same algebra.",
    ),
}
