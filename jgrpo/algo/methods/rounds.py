"""Methods that ask again, by what the first completions of a step have shown."""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "guide_grpo": Method(
        name="guide_grpo",
        sampler="dynamic",
        plan="guide",
        reshape="quantile",
        weights="token_mean",
        unsolved_at=0.001,
        paper="Guide-GRPO, arXiv:2506.13923",
        evidence="authors' compute_policy_loss executed",
        departs="The quantile is of a completion's own tokens (the release pools padding). Surplus "
        "groups are dropped, where the release keeps them for the next step: older weights would "
        "have drawn these, so that ratios of a step would not begin at 1, and whole groups, with "
        "texts, hints and log-probs, would stand in every checkpoint. What is kept is what "
        "`dynamic` keeps: groups of mixed outcome.",
        summary="Draws unsolved groups again under a hint, and trains the policy without it.",
    ),
    "scaf_grpo": Method(
        name="scaf_grpo",
        plan="scaffold",
        hint_levels=8,
        hint_after_steps=50,
        paper="Scaf-GRPO, arXiv:2510.19807",
        evidence="authors' ray_trainer.py read; the share of the warm-up from the paper alone",
        departs="The released code's rule (the paper waits 15 % of the run). Without hints in the "
        "data a level is the first steps of the worked solution.",
        summary="Puts one completion, under the weakest hint that helps, into an unsolved group.",
    ),
    "cgi": Method(
        name="cgi",
        plan="inject",
        reshape="offset",
        paper="S-GRPO for vision models (conditional ground-truth injection), arXiv:2604.16557",
        evidence="weak: abstract only",
        departs="Assumed: the last row is replaced, its ratio is pi / (pi + 0.1), its reward is "
        "what the reward functions give the solution.",
        summary="Puts the worked solution into groups that the policy cannot solve.",
    ),
    "expo": Method(
        name="expo",
        plan="explain",
        paper="ExPO, arXiv:2507.02834",
        evidence="weak: read through notes",
        departs="Assumed: explanations for unsolved groups alone, those with a wrong answer left "
        "out, mean over tokens, weight 0.05 falling linearly to 0.",
        summary="Lets the policy explain an answer it cannot find, and learns the explanation.",
    ),
    "igrpo": Method(
        name="igrpo",
        plan="refine",
        paper="iGRPO, arXiv:2602.09000",
        evidence="paper read",
        departs="The first of the best drafts is taken. A step draws twice rollout.group_size "
        "completions a prompt.",
        summary="Puts the best of some drafts into the prompt, and trains what improves on it.",
    ),
    "thinktuning": Method(
        name="thinktuning",
        plan="feedback",
        reshape="offset",
        loss_on_injected_losers=0.0,
        paper="ThinkTuning, arXiv:2508.07616",
        evidence="weak: abstract only",
        departs="Known: a teacher comments on a part of the completions, and these are trained. "
        "Assumed: all else. The part is 1/4 (feedback_share), the policy goes on behind a comment "
        "in the completion's place; a comment's tokens have the ratio pi / (pi + 0.1) and are left "
        "out where the advantage is not above 0. The teacher is the policy itself, told to comment "
        "(the paper's is another model of its size).",
        summary="Lets a teacher comment on some completions and the policy go on behind that.",
    ),
    "hill": Method(
        name="hill",
        plan="hinter",
        weights="token_mean",
        clip_high=0.28,
        unsolved_at=0.5,
        paper="HiLL, arXiv:2604.00698",
        evidence="authors' hinter_utils.py executed",
        departs="The hinter begins as a copy of the policy (the release: another model). It shares "
        "with it the sampling settings and rollout.max_completion_tokens; a group without a "
        "gradient stays in the denominators of the loss (the release takes it out). Only the base "
        "1 - p^n - (1 - p)^n.",
        summary="Trains a second policy to write hints that make unsolved prompts solvable, and "
        "whose help is still there when the hint is gone.",
    ),
    "arise": Method(
        name="arise",
        shape="skill_bonus",
        plan="skill",
        sampler="dynamic",
        weights="token_mean",
        paper="ARISE, arXiv:2603.16060",
        evidence="authors' verl/workers/arise executed; the step around it is not released",
        departs="Each of a step's prompts chooses a skill, and a skill is updated once, with the "
        "mean of its groups (the release has one prompt a step). Assumed: a step makes one skill, "
        "of the first group that is mixed; unaided are its completions without a skill; the loss "
        "is a mean over tokens. What is no valid skill is refused, where the release cuts some "
        "down. A summary is no longer than rollout.max_completion_tokens.",
        summary="Keeps a library of skills that the policy chooses from by its own likelihood, "
        "works with and adds to.",
    ),
    "m_grpo": Method(
        name="m_grpo",
        shape="format_gate",
        level="sequence",
        plan="delegate",
        clip_low=3e-4,
        clip_high=4e-4,
        scale_ddof=0,
        correct_weight=0.9,
        loss_on_injected=0.0,
        paper="M-GRPO, arXiv:2511.13288",
        evidence="paper read; sub_agent_multiturn.py of the release (AQ-MedAI/MrlX) read",
        departs="The paper's weighted sums (the release pays a sub-agent 0, .1 or 1 by steps). "
        "Assumed: the weights .1 and .9 of the main agent, .1, .5 and .4 of the sub-agent; the "
        "clips of GSPO; copies drawn with replacement; no row, not even in a mean, for a main "
        "agent without a call. Ours: main agents call in their first turn, `<call>...</call>` as "
        "often as they like up to calls_max, and finish in a second one; the answers stand between "
        "the two and are not trained. The sub-agent sees its call alone, has no tools, begins as a "
        "copy of the policy and shares rollout.* with it (the paper: tools, many turns, two "
        "clusters).",
        summary="Trains a main agent and the sub-agent that it calls, each by its own reward.",
    ),
    "s_grpo": Method(
        name="s_grpo",
        shape="serial",
        plan="serial",
        loss_on_injected=0.0,
        paper="S-GRPO, arXiv:2505.07686",
        evidence="weak: read through notes",
        departs="Assumed: the path before an exit is trained in every row with that row's "
        "advantage, the exit phrase is not. The path counts among rollout.group_size.",
        summary="Cuts one path short at several places and rewards early right answers most.",
    ),
}
