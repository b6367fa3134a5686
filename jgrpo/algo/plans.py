"""PLAN and GUIDANCE: the plans by name, and how long guidance is from step to step.

Every plan is made by the combinators of `rounds.py`. The schedules of guidance are integer rules
that truncate; they run on the host in float64, as the published code does. Letters: P prompts, N
places of the pool, G places of a group.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.delegating import DELEGATIONS
from jgrpo.algo.ending import ENDINGS
from jgrpo.algo.hinting import HINTS
from jgrpo.algo.revising import REVISIONS, Planner
from jgrpo.algo.rounds import (
    Finished,
    Plan,
    Ratio,
    Seen,
    Want,
    allocate,
    branch,
    then_if,
    uniform,
    unsolved,
)
from jgrpo.algo.row import Method
from jgrpo.algo.skills import SKILL_PLANS
from jgrpo.algo.telling import TELLING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """How long guidance is, and what led to it.

    Attributes:
      tokens: tokens of a worked solution that a guided completion begins with, at most.
      accuracies: share of correct completions in steps since it was set, as the schedule keeps it.
    """

    tokens: int
    accuracies: tuple[float, ...] = ()


# (m, guidance, accuracy of the step, its number from 1, steps of the run) -> of the next step
Schedule: TypeAlias = Callable[[Method, Guidance, float, int, int], Guidance]


def plan(m: Method, size: int, prompts: int) -> Plan:
    """The method's plan.

    Args:
      m: the method.
      size: completions of a group, on average.
      prompts: of a step.
    """
    if m.allocate != "uniform":
        return allocate(m, size, prompts)
    return chosen(PLANS, m.plan).function(m, size, prompts)


def next_guidance(
    m: Method, guidance: Guidance, accuracy: float, step: int, steps: int
) -> Guidance:
    """The guidance of the step after this one.

    Args:
      m: the method.
      guidance: of this step.
      accuracy: share of all its completions that are correct, guided ones among them.
      step: its number, from 1.
      steps: steps of the run.

    Example:
      >>> from jgrpo.algo import method
      >>> m = method("g2rpo_a", guidance_tokens=1000)
      >>> now, used = Guidance(tokens=1000), []
      >>> for step, accuracy in enumerate([0.4, 0.5, 0.3, 0.3, 0.4, 0.7], start=1):
      ...     used.append(now.tokens)
      ...     now = next_guidance(m, now, accuracy, step, 100)
      >>> used, now.tokens
      ([1000, 1000, 1000, 1500, 1500, 1500], 750)
    """
    return chosen(GUIDANCES, m.guidance).function(m, guidance, accuracy, step, steps)


def plain(m: Method, size: int, prompts: int) -> Plan:
    """Every completion begins with its first token."""
    return uniform(size)


def guided(m: Method, size: int, prompts: int) -> Plan:
    """The first `guided_rows` completions begin with the solution's first tokens.

    References:
      G2RPO-A, arXiv:2508.13023; released trainer `g2rpoa_trainer.py`.
    """

    def wants(seen: Seen) -> list[Want]:
        assert seen.solutions is not None
        found = []
        for p, length in enumerate(np.minimum(seen.guidance, seen.solutions).tolist()):
            led = min(m.guided_rows, size) if length else 0
            if led:
                found.append(Want(p, 0, led, begin="solution", tokens=length))
            if led < size:
                found.append(Want(p, led, size - led))
        return found

    return uniform(size, wants)


def guide(m: Method, size: int, prompts: int) -> Plan:
    """Unsolved groups are drawn again under a hint, and trained without it.

    References:
      Guide-GRPO, arXiv:2506.13923; vaskar-open-source-research/guide_rl.
    """

    def hinted(seen: Seen, p: int) -> list[Want]:
        return [Want(p, size, size, context="hint", of=1, kept=False, ratio=Ratio.BEHAV)]

    def finish(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        return Finished(place=np.where(again[:, None], place + size, place))

    when = lambda seen: unsolved(m, seen, size)  # noqa: E731
    return then_if(uniform(size), "hint", when, hinted, more=size, finish=finish)


def scaffold(m: Method, size: int, prompts: int) -> Plan:
    """The completion under the weakest hint that solves it replaces an unsolved group's first.

    All levels are drawn at once, one completion each, from step `hint_after_steps` on.

    References:
      Scaf-GRPO, arXiv:2510.19807; dvlab-research/Scaf-GRPO `hint_mix_grpo/trainer/ray_trainer.py`.
    """
    levels = m.hint_levels

    def hinted(seen: Seen, p: int) -> list[Want]:
        return [Want(p, size + k, 1, context="hint", of=k + 1) for k in range(levels)]

    def finish(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        assert seen.rewards is not None
        solved = seen.rewards[:, size : size + levels] > m.unsolved_at
        found = solved.any(axis=1)
        place[found, 0] = size + solved[found].argmax(axis=1)
        return Finished(place=place)

    def when(seen: Seen) -> Bool[ndarray, " P"]:
        return unsolved(m, seen, size) & (seen.step >= m.hint_after_steps)

    return then_if(uniform(size), "hint", when, hinted, more=levels, finish=finish)


def inject(m: Method, size: int, prompts: int) -> Plan:
    """The worked solution replaces an unsolved group's last completion.

    References:
      S-GRPO for vision models (conditional ground-truth injection), arXiv:2604.16557.
    """

    def solution(seen: Seen, p: int) -> list[Want]:
        assert seen.solutions is not None
        whole = int(seen.solutions[p])
        given = {"begin": "solution", "tokens": whole, "drawn": False, "ratio": Ratio.UNIT}
        return [Want(p, size, 1, **given)]

    def finish(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        place[again, -1] = size
        return Finished(place=place)

    when = lambda seen: unsolved(m, seen, size)  # noqa: E731
    return then_if(uniform(size), "solution", when, solution, more=1, finish=finish)


def explain(m: Method, size: int, prompts: int) -> Plan:
    """An unsolved group's prompt is explained with its answer known; right ones are imitated.

    The weight of the likelihood falls linearly to 0 at the end of the run.

    References:
      ExPO, arXiv:2507.02834.
    """

    def explained(seen: Seen, p: int) -> list[Want]:
        weight = m.likelihood_coef * (1.0 - seen.step / seen.steps)
        further = {"context": "answer", "kept": False, "ratio": Ratio.OWN, "likelihood": weight}
        return [Want(p, size, 1, **further)]

    def finish(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        assert seen.rewards is not None
        place[seen.rewards[:, size] > m.unsolved_at, -1] = size
        return Finished(place=place)

    when = lambda seen: unsolved(m, seen, size)  # noqa: E731
    return then_if(uniform(size), "answer", when, explained, more=1, extra=1, finish=finish)


def refine(m: Method, size: int, prompts: int) -> Plan:
    """The best of a group of drafts is put into the prompt, and what follows it is trained.

    References:
      iGRPO, arXiv:2602.09000.
    """

    def refined(seen: Seen, p: int) -> list[Want]:
        assert seen.rewards is not None
        return [Want(p, size, size, context="draft", of=best_draft(seen.rewards[p, :size]))]

    def finish(seen: Seen, place: Int[ndarray, "P G"], again: Bool[ndarray, " P"]) -> Finished:
        return Finished(place=place + size)

    when = lambda seen: np.ones(len(seen.prompt_ids), bool)  # noqa: E731
    return then_if(uniform(size), "draft", when, refined, more=size, finish=finish)


def best_draft(rewards: Float[ndarray, " N"]) -> int:
    """Number of the draft with the highest reward, the first of equals; 0 if none has one.

    Example:
      >>> best_draft(np.array([0, 0.1, 1, 1]))
      2
    """
    return int(np.where(np.isnan(rewards), -np.inf, rewards).argmax())


def serial(m: Method, size: int, prompts: int) -> Plan:
    """One whole path, and early exits from it at places drawn uniformly.

    References:
      S-GRPO, arXiv:2505.07686.
    """

    def cuts(seen: Seen, p: int) -> list[int]:
        longest = min(int(seen.lengths[p, 0]) - 1, seen.room)
        if longest < 1:
            return []
        return np.unique(1 + (seen.noise[p, 1:size] * longest).astype(int)).tolist()

    return branch(size, cuts)


def adaptive(m: Method, guidance: Guidance, accuracy: float, step: int, steps: int) -> Guidance:
    """Longer where accuracy falls, shorter where it rises, in cycles of three steps.

    At every third step the length is multiplied by (mean accuracy of the two steps before) /
    (accuracy of this one), truncated, at most `guidance_max_tokens` where it grows and at least 1
    where it shrinks. It stays where either is 0.

    References:
      G2RPO-A, released trainer, `_compute_new_guidance_length`. The paper's own formula takes a
      longer window.
    """
    place, before = (step - 1) % 3, guidance.accuracies
    if place == 0:
        return Guidance(tokens=guidance.tokens, accuracies=(accuracy,))
    if place == 1:
        return Guidance(tokens=guidance.tokens, accuracies=(*before, accuracy))
    tokens = guidance.tokens
    if len(before) == 2:
        mean = (before[0] + before[1]) / 2
        if 0 < accuracy < mean:
            tokens = int(min(tokens * (mean / accuracy), m.guidance_max_tokens))
        elif accuracy > mean > 0:
            tokens = max(int(tokens * (mean / accuracy)), 1)
    return Guidance(tokens=tokens, accuracies=(accuracy,))


def linear(m: Method, guidance: Guidance, accuracy: float, step: int, steps: int) -> Guidance:
    """From `guidance_tokens` at the first step to `guidance_end_tokens` at the last.

    References:
      G2RPO-A, `rule-based-decay.py`.
    """
    first, last = m.guidance_tokens, m.guidance_end_tokens
    done = step / max(steps - 1, 1)  # of the step after this one
    return Guidance(tokens=max(last, int(first - done * (first - last))))


def constant(m: Method, guidance: Guidance, accuracy: float, step: int, steps: int) -> Guidance:
    """As long as it was."""
    return Guidance(tokens=guidance.tokens)


_AGAIN = ("plan/again_fraction", "plan/replaced_fraction", "plan/drawn_tokens")
_ROUNDS = ("rounds",)
PLANS: Mapping[str, Choice[Planner]] = {
    "uniform": Choice(function=plain, formula="every completion is the policy's own"),
    "guided": Choice(
        function=guided,
        formula="the first k completions of a group begin with the first l tokens of its solution",
        constants=("guided_rows", "loss_on_injected", "guidance_tokens"),
        needs=("solutions", "guidance"),
        watch=("guidance/tokens", "guidance/share", "guidance/accuracy"),
        pitfalls=(
            "Guidance tokens are trained like the policy's own (loss_on_injected = 1): the method "
            "is partly supervised.",
        ),
    ),
    "guide": Choice(
        function=guide,
        formula="if max R <= unsolved_at: G completions under a hint take the group's place;"
        " trained without the hint, rho = pi(y | q) / old(y | q, hint)",
        constants=("unsolved_at",),
        needs=_ROUNDS,
        watch=_AGAIN,
    ),
    "scaffold": Choice(
        function=scaffold,
        formula="if max R <= unsolved_at after hint_after_steps: one completion under each of"
        " hint_levels hints; the weakest hint's that has R > unsolved_at replaces the first row",
        constants=("unsolved_at", "hint_levels", "hint_after_steps"),
        needs=_ROUNDS,
        watch=(*_AGAIN, "plan/level_mean"),
        pitfalls=("The hint stays in the prompt of the row that it solved.",),
    ),
    "inject": Choice(
        function=inject,
        formula="if max R <= unsolved_at: the worked solution replaces the last row, rho = pi(y)",
        constants=("unsolved_at", "loss_on_injected"),
        needs=(*_ROUNDS, "solutions"),
        watch=_AGAIN,
    ),
    "explain": Choice(
        function=explain,
        formula="if max R <= unsolved_at: one completion given the answer; if R > unsolved_at:"
        " the loss gains -beta mean_t lp of it without the answer, beta ="
        " likelihood_coef (1 - step / steps)",
        constants=("unsolved_at", "likelihood_coef"),
        needs=_ROUNDS,
        watch=("plan/again_fraction", "plan/likelihood_fraction", "plan/drawn_tokens"),
    ),
    "refine": Choice(
        function=refine,
        formula="G drafts, then G completions of the prompt with the best draft in it; these train",
        needs=_ROUNDS,
        watch=("plan/drawn_tokens",),
        pitfalls=("A step draws 2 G completions a prompt: compare with twice the group size.",),
    ),
    "serial": Choice(
        function=serial,
        formula="one path, and G - 1 exits at uniform places: path so far, exit phrase, answer",
        constants=("loss_on_injected",),
        needs=_ROUNDS,
        watch=("plan/drawn_tokens", "completion/length_mean"),
    ),
    **REVISIONS,
    **TELLING,
    **HINTS,
    **SKILL_PLANS,
    **DELEGATIONS,
    **ENDINGS,
}
GUIDANCES: Mapping[str, Choice[Schedule]] = {
    "adaptive": Choice(
        function=adaptive,
        formula="every third step: l <- int(l * mean(a_1, a_2) / a_3), 1 <= l <= l_max",
        constants=("guidance_max_tokens",),
    ),
    "linear": Choice(
        function=linear,
        formula="l = max(end, int(l_0 - (step - 1) / (steps - 1) * (l_0 - end)))",
        constants=("guidance_end_tokens",),
    ),
    "constant": Choice(function=constant, formula="l = l_0"),
}
