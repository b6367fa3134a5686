"""Methods whose rewards are the method: of a judge, of paraphrases, of a dialogue's next program.

Slots and constants that a row does not name are those of `grpo` without its KL penalty.
"""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "autorule": Method(
        name="autorule",
        shape="weighted_sum",
        reward_weights=(1.0, 10.0),
        penalty="k3",
        kl_coef=0.001,
        paper="AutoRule, arXiv:2506.15651",
        evidence="a fork of the authors' experience_maker.py read",
        departs="Two rewards: a reward model's, and judge_rules. The rules are given (the paper "
        "extracts them from preferences once, before training). All rules of a completion are "
        "judged in one request.",
        summary="Adds to a reward model's score ten times the share of extracted rules that a "
        "judge finds satisfied.",
    ),
    "rgr_grpo": Method(
        name="rgr_grpo",
        plan="rubric_refine",
        reshape="offset",
        paper="RGR-GRPO, arXiv:2511.12344",
        evidence="weak: read through notes",
        departs="The reward is judge_rubric, with rubrics of the data. Assumed: one refined row "
        "(refined_rows), in the place of the worst; its ratio to the policy that saw the criteria "
        "becomes rho / (rho + 0.1). What the best row fails is asked criterion by criterion.",
        summary="Refines the best completion by the criteria that it fails, and trains the result "
        "too.",
    ),
    "ps_grpo": Method(
        name="ps_grpo",
        paper="PS-GRPO (Con-RAG), arXiv:2510.04392",
        evidence="weak: formula read through notes",
        departs="The reward is paraphrase_agreement, beside one for right answers if there are any "
        "(alone it is best served by one answer to everything). A group is the completions of one "
        "paraphrase; whether the paper's is that of all paraphrases is not known.",
        summary="Rewards saying the same to paraphrases of one question.",
    ),
    "info_consistency": Method(
        name="info_consistency",
        scale_ddof=0,
        paper="Information-consistent GRPO, arXiv:2512.12858",
        evidence="weak: formula read through notes",
        departs="The reward is information_consistency. Pairing by place in the group, equal "
        "weights, and a group of one variant's completions are assumed.",
        summary="Rewards equal information for all variants of a question.",
    ),
    "cobalt": Method(
        name="cobalt",
        clip_low=0.2,
        clip_high=0.4,
        penalty="k2",
        kl_coef=0.0001,
        paper="Cobalt, arXiv:2602.03806",
        evidence="authors' reward file and data script read; worked values executed",
        departs="The reward is cobalt, on dialogues of your own, cut by `jgrpo dialogues` (the "
        "share with swapped outputs is assumed). Lengths of thinking and of the answer are not "
        "told apart, and the bonus for reflection below 0 is left out. The authors' n is 16.",
        summary="Multi-turn programs as a bandit: writes the next program of a stored dialogue.",
    ),
    "grpo_smu": Method(
        name="grpo_smu",
        paper="GRPO-SMu, arXiv:2601.07593",
        evidence="weak: abstract only",
        departs="Our reading, on arithmetic in the place of hardware designs: task mutants, reward "
        "stimulus. Trees, their branching and the reward are assumed; a step asks whole trees with "
        "data.shuffle=false and data.num_prompts_per_step a multiple of their nodes (6). The "
        "supervised phase before is method sft on the task's solutions.",
        summary="Learns to write tests from a tree of mutants of one design.",
    ),
}
