"""What compiled programs exchange on each mesh, read from the HLO of those that ran.

A model whose weights lie on several devices trains as it should only if XLA brings weights to
tokens, layer by layer: tokens that are brought to weights, or stacks of layers that are put
together whole, are right and take the memory and time of one device.
"""

import re
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import small_models as small

from jgrpo.learner.batch import unweighted
from jgrpo.planning import hlo
from jgrpo.rollout.sample import Sampling

PROMPTS, GROUP, WIDTH = 8, 4, 16
LAYERS, D, F = 2, small.SIZES["hidden_size"], small.SIZES["intermediate_size"]


def ran(name: str, run) -> str:
    """The HLO of the program of a name that a function has compiled."""
    client = jax.devices()[0].client
    before = set(client.live_executables())
    kept = run()  # its programs live as long
    found = [x.hlo_modules()[0] for x in client.live_executables() if x not in before]
    del kept
    return next(module.to_string() for module in found if module.name == name)


def update_of(family: str, **settings) -> str:
    learner = small.learner(family, devices=8, unstack=False, **settings)
    batch = unweighted(
        small.completed(small.prompts(PROMPTS), GROUP, WIDTH), np.ones((PROMPTS, GROUP), bool)
    )

    def run():
        return learner, learner.update(learner.init(small.model(family)[2]), batch)

    return ran("jit__update", run)


def over(text: str, **mesh: int) -> set[tuple[str, ...]]:
    sizes = {"replica": 1, "fsdp": 1, "expert": 1, "tensor": 1} | mesh
    return {(c.kind, *c.axes) for c in hlo.collectives(text, sizes)}


def gathered(text: str) -> Iterator[tuple[int, ...]]:
    """The dims of what is put together, but for those of 1."""
    for dims in re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather\(", text):
        yield tuple(size for size in map(int, filter(None, dims.split(","))) if size > 1)


def test_fsdp_brings_weights_to_tokens_layer_by_layer():
    text = update_of("llama", fsdp=8)
    shapes = set(gathered(text))
    assert {(D, F), (F, D)} <= shapes  # of one layer
    assert not [dims for dims in shapes if dims[0] == LAYERS and D in dims[1:]]
    # Nothing has the tokens of all devices, but ids that are looked up.
    tokens = {PROMPTS * GROUP * WIDTH, PROMPTS * GROUP * (WIDTH - 1), PROMPTS * 5}
    assert not [dims for dims in shapes if dims[0] in tokens]
    kinds = {"all-gather", "all-reduce", "all-to-all"}
    assert {kind for kind, *_ in over(text, fsdp=8)} == kinds


def test_replicas_exchange_nothing_but_gradients_and_metrics():
    text = update_of("llama", microbatch_completions=2)
    assert over(text, replica=8) == {("all-reduce", "replica")}
    (all_reduces,) = hlo.collectives(text, {"replica": 8})
    numbers = sum(x.size for x in jax.tree.leaves(small.model()[2]))
    assert all_reduces.bytes < 4 * 1.02 * numbers  # once an update, not once a microbatch


def test_tensor_sums_the_stream_twice_a_layer_and_gathers_nothing():
    text = update_of("llama", tensor=2)
    assert over(text, replica=4, tensor=2) == {("all-reduce", "replica"), ("all-reduce", "tensor")}


def test_experts_get_rows_and_give_sums():
    text = update_of("qwen3_moe", expert=4)
    found = over(text, replica=2, expert=4)
    assert {("all-gather", "expert"), ("reduce-scatter", "expert")} <= found
    experts = small.EXPERTS["qwen3_moe"]
    whole = (experts["num_experts"], D, experts["moe_intermediate_size"])
    assert whole not in set(gathered(text))
    assert (LAYERS, *whole) not in set(gathered(text))


def test_chunks_of_the_vocabulary_add_up_where_they_are():
    """Sixteen chunks of logits; the gradient of the head is summed over devices as if of one."""
    one, many = (
        hlo.collectives(update_of("llama", fsdp=8, logp_chunk_tokens=size), {"fsdp": 8})
        for size in (0, 4)
    )
    summed = [next(c.bytes for c in found if c.kind == "all-reduce") for found in (one, many)]
    assert summed[1] == pytest.approx(summed[0], rel=0.01)


@pytest.mark.parametrize("gather", [True, False])
def test_decoding_with_gathered_weights_exchanges_no_weights(root, gather):
    engine, params = small.sampler(
        root, devices=8, fsdp=8, gather=gather, unstack=False, eos_ids=(1,)
    )
    ask = {"group_size": 2, "max_tokens": 16, "sampling": Sampling()}

    def run():
        return engine, engine.generate(params, small.prompts(PROMPTS), jax.random.key(0), **ask)

    found = hlo.collectives(ran("jit_advance", run), {"fsdp": 8})
    largest = max(c.bytes // c.count for c in found)
    assert (largest < D * F) == gather
