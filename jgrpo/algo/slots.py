"""All slot tables by the name of their slot, and what follows from a method's choices."""

from collections.abc import Mapping
from typing import Any

from jgrpo.algo.allocation import ALLOCATES
from jgrpo.algo.baselines import BASES
from jgrpo.algo.choice import Choice, chosen
from jgrpo.algo.combining import COMBINES
from jgrpo.algo.constraints import BONUSES, CONSTRAINTS
from jgrpo.algo.controlling import CONTROLS
from jgrpo.algo.corrections import CORRECTIONS
from jgrpo.algo.drawing import DRAWS
from jgrpo.algo.late import LATES
from jgrpo.algo.levels import LEVELS
from jgrpo.algo.penalties import PENALTIES, penalised
from jgrpo.algo.plans import GUIDANCES, PLANS
from jgrpo.algo.posts import POSTS
from jgrpo.algo.preference import AUXES
from jgrpo.algo.refilling import REFILLS, ROW_MASKS
from jgrpo.algo.replaying import REPLAYS
from jgrpo.algo.reshapes import RESHAPES
from jgrpo.algo.row import Constant, Method
from jgrpo.algo.sampling import SAMPLERS
from jgrpo.algo.scales import SCALES
from jgrpo.algo.shaping import SHAPES
from jgrpo.algo.trackers import TRACKERS
from jgrpo.algo.trust import TRUSTS
from jgrpo.algo.vetoes import VETOES
from jgrpo.algo.weights import WEIGHTS

_OFF_POLICY = ("guide", "inject", "replay", "rubric_refine", "feedback")
"""Plans of tokens that another law than the old policy's has drawn."""


def choices(m: Method) -> dict[str, Choice[Any]]:
    """The method's choice in each slot that has a function and something to do."""
    idle = [] if m.plan == "guided" else ["guidance"]
    if m.plan not in _OFF_POLICY and ":" not in m.plan:
        idle.append("reshape")  # nobody else than the policy draws
    at_work = ((slot, table) for slot, table in TABLES.items() if slot not in idle)
    return {slot: chosen(table, getattr(m, slot)) for slot, table in at_work}


def needs(m: Method) -> frozenset[str]:
    """What the caller must supply for the method, besides rewards, masks, logp and old_logp.

    Args:
      m: the method.

    Returns:
      Names of fields of `Side` (lengths come with `max_completion_tokens`), of arguments of
      `policy_loss` (`ref_logp`, `segments`, `behavior_logp`, `entropy`, `entropy_mask`,
      `constraint_scale`), and:
      `columns` (rewards of [P, G, K]), `state` (of `init_state`), `late` (a pass of
      `late_advantages` before every update), `allocation` (sampling by `allocation`), `pivot` (a
      completion more per prompt than are trained), `solutions` (worked reference completions in the
      data), `guidance` (a length of it, which the plan reads), `rounds` (completions drawn as
      `plan` says, which may ask again), `preference` (training of a preference model),
      `moving_reference` (a reference policy that follows the policy), `draw` (prompts
      that `draw` chooses), `refill` (training on the groups that `refill` chooses), `replay`
      (completions of earlier steps that `replay` brings back), `rubric` (a judge of each prompt's
      own criteria, whose scores the plan reads), `control` (sampling at the temperature of
      `controlling.temperatures`, log-probs at the same), `predictions` (what completions under the
      context `predict` tell, which the plan reads), `stops` (where a preference model would end
      completions, from `ending.stops`, which the plan reads), `experts` (predictions that were put
      right, kept until they are a batch and then trained by their likelihood), `hints` (a second
      policy that writes them, gates that they must pass, and how much completions rely on them),
      `skills` (a library of them, of which the policy chooses, and which it adds to), `calls` (a
      second policy that answers the calls of completions, and experts who judge the answers).

    Example:
      >>> from jgrpo.algo import METHODS
      >>> sorted(needs(METHODS["rloo"]))
      ['ref_logp', 'sequence_kl']
    """
    each = choices(m)
    if m.kl_coef == 0:
        del each["penalty"]
    names = {name for choice in each.values() for name in choice.needs}
    if penalised(m, "reward"):
        names.add("sequence_kl")
    if penalised(m, "token_reward"):
        names.add("token_kl")
    if m.source != "policy":
        names.add("solutions")
    if m.expert_coef == 0:
        names.discard("experts")
    return frozenset(names)


def constants(m: Method) -> dict[str, Constant]:
    """The constants that have an effect in this method, in the order of its slots."""
    each = choices(m).values()
    return {name: getattr(m, name) for choice in each for name in choice.constants}


TABLES: Mapping[str, Mapping[str, Choice[Any]]] = {
    "draw": DRAWS,
    "sampler": SAMPLERS,
    "allocate": ALLOCATES,
    "shape": SHAPES,
    "base": BASES,
    "scale": SCALES,
    "combine": COMBINES,
    "post": POSTS,
    "late": LATES,
    "level": LEVELS,
    "trust": TRUSTS,
    "reshape": RESHAPES,
    "veto": VETOES,
    "correction": CORRECTIONS,
    "weights": WEIGHTS,
    "penalty": PENALTIES,
    "bonus": BONUSES,
    "constraint": CONSTRAINTS,
    "tracker": TRACKERS,
    "plan": PLANS,
    "guidance": GUIDANCES,
    "aux": AUXES,
    "control": CONTROLS,
    "refill": REFILLS,
    "row_mask": ROW_MASKS,
    "replay": REPLAYS,
}
