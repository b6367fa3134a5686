"""What is trained, or read, beside the policy: the critic and the preference model.

They stand in `TrainState.aux` under their names, apart from the policy's parameters. The optimizer
sees those that are trained and the policy as one tree.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from jgrpo import algo
from jgrpo.learner.critic import VALUE_HEAD, head_shapes, head_shardings
from jgrpo.learner.preference import PREFERENCE, preference_shapes, preference_shardings
from jgrpo.types import TrainState

_HEADS = (VALUE_HEAD, PREFERENCE)


def shapes(m: algo.Method, params: Mapping[str, Any]) -> dict[str, PyTree[jax.ShapeDtypeStruct]]:
    """Shapes of what the method trains beside a policy of these shapes, by name."""
    needed = algo.needs(m)
    found = head_shapes(params) if "values" in needed else {}
    return found | (preference_shapes(params) if "preference" in needed else {})


def shardings(
    m: algo.Method, params: Mapping[str, Any], mesh: Mesh
) -> dict[str, PyTree[NamedSharding]]:
    """Shardings of the same, of a policy that is sharded so."""
    needed = algo.needs(m)
    found = head_shardings(params, mesh) if "values" in needed else {}
    return found | (preference_shardings(mesh) if "preference" in needed else {})


def keeps_reference(m: algo.Method) -> bool:
    """Whether the initial weights are kept beside those that are trained."""
    return bool(algo.needs(m) & {"ref_logp", "prefix_scores", "answer_logp"})


def trained_of(state: TrainState, names: Iterable[str]) -> dict[str, PyTree]:
    """What the optimizer sees as one tree: the policy's parameters, and these heads by name."""
    return state.params | {name: state.aux[name] for name in names}


def without_heads(trained: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's parameters alone."""
    return {name: tree for name, tree in trained.items() if name not in _HEADS}
