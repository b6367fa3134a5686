"""Text about methods, made from the rows and from the formula strings of their slots.

`jgrpo methods` prints it and docs/methods.md is written from it, so a new row or slot function
documents itself. Nothing here is computed; nothing is printed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jgrpo.algo.methods import METHODS, SLOTS, Constant, Method, method
from jgrpo.algo.penalties import penalised
from jgrpo.algo.slots import TABLES, choices, constants, needs

# What `needs` names, as a sentence for the reader.
NEEDS: Mapping[str, str] = {
    "ref_logp": "log-probs of the completions under a frozen reference policy",
    "behavior_logp": "the log-probs that the sampler drew the tokens at",
    "entropy": "the entropy of the policy before each token, with gradient",
    "entropy_mask": "algo.top_entropy of the whole batch, from the entropies at the old weights",
    "segments": "the item that each token belongs to",
    "constraint_scale": "algo.constraint_scale of the whole batch, before every update",
    "late": "algo.late_advantages on the whole batch, before every update",
    "sequence_kl": "the penalty summed over each completion, from algo.sequence_kl",
    "token_kl": "the log-ratio of each token to the reference policy",
    "lengths": "the length of each completion and the length limit",
    "step": "the number of the step",
    "mean_logp": "the mean log-prob of each completion",
    "mask": "which tokens are trained, when advantages are made",
    "tokens": "the token ids, when advantages are made",
    "values": "a critic's prediction before each token",
    "strata": "the stratum of each completion",
    "reference": "which rows are worked solutions",
    "answer_logp": "the mean log-prob of each answer under the reference policy",
    "moving_reference": "a reference policy that follows; training runs keep it",
    "prefix_scores": "a preference model's score of every beginning of a completion",
    "preference": "the training of a preference model; training runs do it",
    "prior": "the predicted mean reward of each prompt",
    "prompt_ids": "the number of each prompt in the data set",
    "drift": "how far the policy moved on the prompt's previous completion",
    "columns": "several rewards per completion, as columns",
    "state": "a state kept from step to step, from algo.init_state",
    "allocation": "groups whose sizes algo.allocation gives",
    "pivot": "one completion more per prompt than are trained; training runs sample it",
    "solutions": "worked reference solutions in the data",
    "guidance": "completions that begin as algo.plan says; training runs sample them",
    "rounds": "completions drawn in rounds, as algo.plan says; training runs draw them",
    "draw": "prompts that algo.draw chooses; training runs ask them",
    "refill": "training on the groups that algo.refill chooses; training runs do",
    "replay": "completions of earlier steps, as algo.replay says; training runs store them",
    "predictions": "what predictions say, read by the plan; training runs read their JSON",
    "experts": "the imitation of predictions that were put right; training runs do it",
    "stops": "where a preference model ends completions, read by the plan; training runs ask it",
    "control": "sampling, and log-probs, at the step's temperature; training runs do",
    "rubric": "each completion's score by its prompt's criteria; training runs ask judge_rubric",
    "calls": "answers by a policy of its own, and experts' words on them; training runs do it",
    "hints": "hints by a policy of its own, as algo.plan says; training runs keep and train it",
    "skills": "a library of skills, as algo.plan says; training runs choose from it and keep it",
    "skilled": "which completions worked with a skill",
    "truncated": "which completions the length limit cut off",
    "non_incorrect": "which completions were not judged to be wrong",
    "repeats": "which completions end by repeating themselves, from algo.is_repeat",
    "chance": "a uniform draw for each completion",
}
# What training keeps from step to step for a need, as fields of `TrainState`.
KEPT: Mapping[str, str] = {
    "state": "strategy.tracker",
    "guidance": "strategy.guidance",
    "control": "strategy.control",
    "replay": "strategy.replay",
    "skills": "strategy.skills",
    "experts": "strategy.experts",
    "drift": "aux.previous",
    "values": "aux.value_head",
    "preference": "aux.preference",
    "prefix_scores": "aux.preference",
    "hints": "aux.roles",
    "calls": "aux.roles",
    "moving_reference": "ref_params",
}
SOURCES: Mapping[str, str] = {
    "policy": "completions are sampled from the policy",
    "reference": "completions are the data's worked solutions",
    "both": "completions are sampled, and each group has the data's worked solution as a row more",
}
KL_IN: Mapping[str, str] = {
    "loss": "kappa is added to the loss of each token",
    "reward": "kappa is summed over the completion and subtracted from its reward",
    "token_reward": "kappa is subtracted from the reward of each token",
}
# Choices that do nothing, which a page leaves out.
IDLE: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "shape",
            "combine",
            "post",
            "late",
            "veto",
            "correction",
            "penalty",
            "bonus",
            "constraint",
            "tracker",
            "reshape",
            "aux",
            "refill",
            "row_mask",
            "replay",
        ),
        "none",
    ),
    "draw": "order",
    "control": "constant",
    "allocate": "uniform",
    "plan": "uniform",
}
# Slots whose formula is a sentence.
_PROSE = (
    *("draw", "sampler", "allocate", "tracker", "plan", "control", "refill", "row_mask"),
    "replay",
)
SYMBOLS = """\
| symbol | meaning |
|---|---|
| `i`, `t`, `j` | completion, token position, completion of the same group as `i` |
| `R`, `R'` | reward as scored; after the transform |
| `A` | advantage of a completion (of each of its tokens) |
| `k`, `K` | reward column, or item of a list; their number |
| `V`, `p` | value that something else predicts; success rate |
| `lp`, `old`, `ref` | log-prob of a token: policy, policy at the start of the step, reference |
| `beh`, `H` | log-prob at which the sampler drew the token; entropy of the policy before it |
| `d` | `lp - old`, clamped to [-20, 20] |
| `m`, `n` | mask of trained tokens; their number in a completion |
| `ell`, `rho` | log-ratio after the level is chosen; `exp(ell)` |
| `sg(x)` | `x` without gradient |
| `phi`, `v`, `c` | per-token surrogate, maximised; veto and correction, factors without gradient |
| `w` | weight of a token, over the whole batch of an update |
| `G`, `B`, `B+` | completions per prompt; completions; completions with a trained token |"""
INTRODUCTION = """\
A method is a row: one choice per slot, and constants. `method: NAME` in a recipe takes a row, and
any slot or constant can be changed: `method.trust=cispo method.clip_high=4` on the command line, a
mapping with `name` in YAML, `algo.method("gspo", clip_low=1e-3)` in Python. `jgrpo methods NAME`
prints one of the pages below.

Names and constants are the papers'. Where a computation departs from the paper, or the paper gives
no number, the row says so. *Evidence* says how a formula was checked: "executed" means that it gave
the loss and the gradient of the named code; "weak" means that parts are reconstructed."""

COMBINING = """\
Every choice of every slot. Slots combine freely; what contradicts itself (a k3 penalty in the
reward, say) is refused with the reason. A function of your own fills a slot under its path,
`package.module:function`: see [using the algebra](using_the_algebra.md)."""


def methods_table() -> list[dict[str, Any]]:
    """All methods as JSON-ready records: name, slots, constants, needs, state and the texts."""
    return [_record(row) for row in METHODS.values()]


def method_page(name: str) -> str:
    """One method in markdown: formula, constants, needs, state, metrics to watch, pitfalls.

    Args:
      name: a key of `METHODS`.

    Raises:
      ValueError: for an unknown name.
    """
    m = method(name)
    lines = [f"## {m.name}", "", m.summary, ""]
    lines += [f"- paper: {m.paper}", f"- evidence: {m.evidence}", f"- departs: {m.departs}"]
    lines += ["", "```text", *_formulas(m), "```", ""]
    values = ", ".join(f"`{field}={value}`" for field, value in constants(m).items())
    lines += [f"**Constants:** {values or 'none'}.", ""]
    wanted = "; ".join(f"`{need}` ({NEEDS[need]})" for need in sorted(needs(m)))
    lines += [f"**Needs:** {wanted or 'nothing but rewards and log-probs'}.", ""]
    state = ", ".join(f"`{name}`" for name in kept(m))
    lines += [f"**State:** {state}.", ""] if state else []
    lines += [f"**Watch:** {', '.join(f'`{metric}`' for metric in _watch(m))}.", ""]
    lines += ["**Pitfalls:**", "", *(f"- {pitfall}" for pitfall in _pitfalls(m))]
    return "\n".join(lines) + "\n"


def methods_page() -> str:
    """The whole of docs/methods.md."""
    slots = ["base", "scale", "level", "trust", "weights", "penalty"]
    lines = ["# Methods", "", INTRODUCTION, ""]
    lines += [f"| method | {' | '.join(slots)} | further | paper |"]
    lines += ["|---" * (len(slots) + 3) + "|"]
    for m in METHODS.values():
        further = [f"{slot} {choice}" for slot, choice in _busy(m) if slot not in slots]
        cells = [f"[{m.name}](#{m.name})", *(getattr(m, slot) for slot in slots)]
        lines.append(f"| {' | '.join([*cells, ', '.join(further) or 'none', m.paper])} |")
    lines += ["", "## Symbols", "", SYMBOLS, ""]
    lines += [line for m in METHODS.values() for line in (method_page(m.name), "")][:-1]
    lines += ["## Slots", "", COMBINING, ""]
    for slot in SLOTS:
        lines += [f"### {slot}", "", "| choice | formula |", "|---|---|"]
        for choice in SLOTS[slot]:
            lines.append(f"| `{choice}` | {_slot_text(slot, choice)} |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def kept(m: Method) -> list[str]:
    """What training keeps for a method from step to step, as fields of `TrainState`."""
    return sorted({KEPT[need] for need in needs(m) if need in KEPT})


def _record(m: Method) -> dict[str, Any]:
    return {
        "name": m.name,
        "slots": {slot: getattr(m, slot) for slot in SLOTS},
        "changes": dict(_changes(m)),
        "constants": constants(m),
        "needs": sorted(needs(m)),
        "state": kept(m),
        "paper": m.paper,
        "evidence": m.evidence,
        "departs": m.departs,
        "summary": m.summary,
    }


def _changes(m: Method) -> Iterator[tuple[str, Constant]]:
    """Slots in which the method differs from grpo, and constants in which it does there."""
    grpo = METHODS["grpo"]
    for field in (*SLOTS, *constants(m)):
        if getattr(m, field) != getattr(grpo, field):
            yield field, getattr(m, field)


def _busy(m: Method) -> Iterator[tuple[str, str]]:
    """The slots that do something, in the order of the computation."""
    idle = {**IDLE, "sampler": "uniform", "source": "policy", "kl_in": "loss"}
    for slot in ("source", *choices(m)):
        if getattr(m, slot) != idle.get(slot):
            yield slot, getattr(m, slot)


def _formulas(m: Method) -> list[str]:
    """The composition, one slot a line, with the slots that do nothing left out."""
    factors = {"v_it ": m.veto, "c_it ": m.correction}
    policy = "-" + "".join(f for f, slot in factors.items() if slot != "none") + "phi_it"
    loss_kl = f" + {m.kl_coef} kappa_it" if penalised(m, "loss") else ""
    further = "" if m.constraint == "none" else " + C"
    lines = [f"loss = sum_it w_it ({policy}{loss_kl}){further}", ""]
    texts = {slot: choice.formula for slot, choice in choices(m).items()}
    texts["source"] = SOURCES[m.source]
    if m.trust == "linear":
        texts["level"] = "not used: phi has no ratio"
    if penalised(m, "reward"):
        texts["penalty"] += f", R'_i less {m.kl_coef} sum_t kappa_it"
    if penalised(m, "token_reward"):
        texts["penalty"] += f", {m.kl_coef} kappa_it less at each token"
    for slot in ("source", *choices(m)):
        if getattr(m, slot) != IDLE.get(slot):
            lines.append(f"{slot + ' ' + getattr(m, slot):<26}  {texts[slot]}")
    return lines


def _watch(m: Method) -> list[str]:
    names = ["reward/mean", *(name for c in choices(m).values() for name in c.watch)]
    return list(dict.fromkeys(names))


def _pitfalls(m: Method) -> list[str]:
    sentences = [pitfall for choice in choices(m).values() for pitfall in choice.pitfalls]
    return list(dict.fromkeys(sentences)) or ["None known."]


def _slot_text(slot: str, choice: str) -> str:
    if slot == "source":
        return SOURCES[choice]
    if slot == "kl_in":
        return KL_IN[choice]
    formula = TABLES[slot][choice].formula
    return formula if slot in _PROSE else f"`{formula}`"
