"""PLAN, the choices that put words of the method's own around every prompt of a step.

Letters and rules are those of `rounds` and `plans`.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jgrpo.algo.choice import Choice
from jgrpo.algo.lengths import length_budget
from jgrpo.algo.revising import Planner
from jgrpo.algo.rounds import Finished, Plan, Round, Seen, Want, uniform
from jgrpo.algo.row import Method


def budget(m: Method, size: int, prompts: int) -> Plan:
    """Every completion is drawn, and trained, under a prompt that tells the step's length budget.

    References:
      Train Long, Think Short, arXiv:2508.08940. Departs: the words are ours, and the budget is
      told in whole tokens, rounded.
    """

    def wants(seen: Seen) -> list[Want]:
        told = round(float(length_budget(m, np.array(seen.step))))
        return [Want(p, 0, size, context="budget", of=told) for p in range(len(seen.prompt_ids))]

    return dataclasses.replace(uniform(size, wants), uneven=True, marks=True)


def predict(m: Method, size: int, prompts: int) -> Plan:
    """A group of solutions, and beside it a group of predictions about them.

    References:
      MASA, arXiv:2510.03259; akatigre/MASA-RL. Departs: the words of the question are ours.
    """

    def wants(seen: Seen) -> list[Want]:
        numbers = range(len(seen.prompt_ids))
        return [want for p in numbers for want in (Want(p, 0, size), _prediction(p, size))]

    both = uniform(2 * size, wants)
    halves = {"kept": size, "width": size, "groups": 2}
    return dataclasses.replace(both, **halves, reads=True, uneven=True, marks=True)


def predict_first(m: Method, size: int, prompts: int) -> Plan:
    """Predictions, then solutions where these are not sure, at most twice as long as predicted.

    A prompt whose predictions cannot be read has solutions as long as the run allows.

    References:
      MASA, arXiv:2510.03259, its abstract. Departs: all of it is assumed; the release lacks it.
    """
    both = predict(m, size, prompts)

    def wants(seen: Seen) -> Round | None:
        numbers = range(len(seen.prompt_ids))
        if not seen.rounds:
            return Round("predictions", [_prediction(p, size) for p in numbers])
        assert seen.predicted is not None
        rate, tokens = seen.predicted.T
        most = np.maximum(1, np.nan_to_num(2 * tokens, nan=0.0).round()).astype(int)
        limits = np.where(np.isnan(tokens), 0, most).tolist()
        unsure = np.flatnonzero(~np.isin(rate, (0.0, 1.0))).tolist()  # nan is not sure either
        found = [Want(p, 0, size, limit=limits[p]) for p in unsure]
        return Round("solutions", found) if found and len(seen.rounds) == 1 else None

    def finish(seen: Seen) -> Finished:
        return Finished(place=np.where(seen.lengths > 0, both.finish(seen).place, -1))

    return dataclasses.replace(both, wants=wants, finish=finish)


def _prediction(prompt: int, size: int) -> Want:
    return Want(prompt, size, size, context="predict", of=1)


TELLING: Mapping[str, Choice[Planner]] = {
    "budget": Choice(
        function=budget,
        formula="every completion is drawn and trained under a prompt that tells"
        " L = max(1, L_0 g^floor(t/T)), rounded",
        constants=("budget_start_tokens", "budget_decay", "budget_every_steps"),
        needs=("rounds",),
        watch=("plan/level_mean", "completion/length_mean"),
        pitfalls=("Held-out prompts are asked without the sentence.",),
    ),
    "predict": Choice(
        function=predict,
        formula="G solutions, and G predictions of their pass rate p, length and notions, in groups"
        " of their own; a prediction's R = (0.01^abs(p' - p) + [min < length' < max of right ones]"
        " + share of notions that more right than wrong solutions have) / 3. Of each prompt the"
        " prediction with the best notions, if expert_notion or more, is kept with the true rate"
        " and length in it; when as many wait as a step has prompts, the loss gains -expert_coef"
        " mean_i mean_t lp of them",
        constants=("expert_coef", "expert_notion"),
        needs=("rounds", "experts"),
        watch=("plan/drawn_tokens", "expert/stored", "expert/trained"),
        pitfalls=(
            "reward/mean is over solutions and predictions alike: watch the mean of your reward, "
            "and reward/prediction_rate/mean, _length and _notion.",
            "A model that writes no JSON predicts nothing: all its predictions are worth 0.",
            "A step that imitates predictions trains up to twice the groups at once: its update is "
            "compiled, and needs memory, for these (bounded by optim.microbatch_completions).",
        ),
    ),
    "predict_first": Choice(
        function=predict_first,
        formula="as `predict`, predictions first; solutions only where 0 < mean p' < 1 or no p' can"
        " be read, of at most 2 mean length' tokens",
        constants=("expert_coef", "expert_notion"),
        needs=("rounds", "predictions", "experts"),
        watch=("plan/again_fraction", "completion/clipped_fraction"),
        pitfalls=("Predictions about prompts that are left out are not trained.",),
    ),
}
