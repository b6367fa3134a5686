"""Methods that lead the policy along worked solutions while it samples."""

from collections.abc import Mapping

from jgrpo.algo.row import Method

ROWS: Mapping[str, Method] = {
    "g2rpo_a": Method(
        name="g2rpo_a",
        plan="guided",
        scale_eps=0.0001,
        paper="G2RPO-A, arXiv:2508.13023",
        evidence="authors' trainer and decay script executed",
        departs="The released code's three-step cycle (the paper's window is longer). k = 2 of "
        "rollout.group_size (the release: 2 of 12). Guidance and what follows share "
        "rollout.max_completion_tokens; a solution shorter than the guidance is given whole.",
        summary="Some completions of a group begin with the first tokens of a worked solution, "
        "more of them while accuracy falls and fewer while it rises.",
    ),
}
