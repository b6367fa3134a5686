"""Losses that couple a group, and groups with a reference answer.

Constants and evidence are those of the papers and of the code their authors (or verl and TRL)
published; "executed" means that formula and code gave the same loss and gradient. Slots and
constants that a row does not name are those of `grpo` without its KL penalty.
"""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "disco": Method(
        name="disco",
        base="none",
        scale="none",
        late="disco",
        trust="linear",
        constraint="hinge_k1",
        score_tau=10.0,
        constraint_delta=0.0001,
        constraint_beta=1000.0,
        paper="DisCO, arXiv:2505.12366",
        evidence="executed against the authors' discob_logL, disco_logL and disco_Lratio "
        "(gradient and drift)",
        departs="The code's penalty, whose gradient is half the paper's. late=disco_ratio wants "
        "score_tau=1.",
        summary="Discriminative: raises scores of right over wrong completions, without clip and "
        "deviation.",
    ),
    "drpo": Method(
        name="drpo",
        base="none",
        scale="none",
        late="drpo",
        trust="linear",
        constraint="hinge_k1",
        score_tau=10.0,
        length_lambda=0.1,
        length_limit_tokens=8192,
        constraint_delta=0.0001,
        constraint_beta=1000.0,
        paper="DRPO, arXiv:2510.04474",
        evidence="executed against the authors' compute_policy_loss_drpo",
        departs="The length limit is a constant (the code takes the padded width). Groups without "
        "a wrong completion add 0.",
        summary="DisCO that prefers short correct completions, among the correct ones only.",
    ),
    "reg_grpo": Method(
        name="reg_grpo",
        late="regression",
        trust="linear",
        penalty="k3",
        kl_coef=0.0,
        paper="Reg-GRPO (DeepVideo-R1), arXiv:2506.07464",
        evidence="weak: third-party notes",
        departs="The KL coefficient is not known: 0. ddof 1 and eps 1e-6 are assumed. The first "
        "update is centred only. Difficulty augmentation is the data's.",
        summary="Regresses the advantage from the policy's own log-ratios.",
    ),
    "grao": Method(
        name="grao",
        base="sampled_mean",
        scale="sampled_std",
        post="imitate",
        trust="linear",
        source="both",
        scale_ddof=0,
        scale_eps=1e-08,
        imitation_coef=0.5,
        alignment_coef=0.6,
        paper="GRAO, arXiv:2508.07750",
        evidence="paper read in full; executed on its own example",
        departs="eps, the reference row outside mean and deviation, and the bound of its "
        "advantage at 10 are assumed.",
        summary="Explores and imitates a reference answer, each gated by its advantage.",
    ),
    "tempsamp_r1": Method(
        name="tempsamp_r1",
        shape="squash",
        source="both",
        scale_eps=0.0001,
        squash_tau=0.8,
        squash_alpha_high=0.01,
        squash_alpha_low=1.0,
        penalty="k3",
        kl_coef=0.04,
        paper="TempSamp-R1, arXiv:2509.18056",
        evidence="weak: third-party notes and code",
        departs="ddof 1 and eps 1e-4 are assumed. The reference row needs old_logp = logp without "
        "gradient. The anchored variant: base sampled_mean, scale sampled_std, shape none, post "
        "anchor.",
        summary="Lets one reference answer join the group without drowning the others.",
    ),
}
