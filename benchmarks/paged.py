"""Decoding by a paged kernel against the cascade: what one layer reads of keys and values.

    .venv/bin/python benchmarks/paged.py          # 4 prompts of 1,024 tokens, 16 completions of 512
    .venv/bin/python benchmarks/paged.py --group 1 --prompts 64 --lengths geometric:48

The kernel is `ragged_paged_attention` of `jax.experimental.pallas.ops.tpu`. The rows of a group
point to the same pages of their prompt, so that both keep a prompt once in memory; the kernel
fetches these pages again for every row.

Prints one JSON line. `step` is one token of every completion at the given lengths, in rings as wide
as the longest needs; `waves` and `slots` draw eight times as many completions of such lengths,
group by group or as slots become free. Bytes are counted: for the kernel whole blocks of every row,
as its source fetches them; for the cascade the prompts and rings once, which are the arguments of
its program; `least` is every real token once. `compiled` is what the compiler for v5e says of the
step, if TPU_LIBRARY_PATH names libtpu. What it says of bytes read is no measure: it does not look
into kernels, and counts what stays on the chip.

No TPU has run this: nothing here is a time.

Letters: P prompts, G completions per prompt, Lp prompt positions, W positions of completions, H
query heads, K key/value heads, E head width, N pages, S positions of a page, M pages of a row.
"""

import argparse
import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec, use_abstract_mesh
from jaxtyping import Array, Float, Int
from learner import draw_lengths
from step import print_line

from jgrpo.buckets import bucket
from jgrpo.models.layers import attend
from jgrpo.rollout.work import layout

# Decode steps of a call of `rollout.engine.Engine`, at whose ends rings change their width.
_STEPS = 16
# As many completions are drawn as fill the slots so often.
_WAVES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """How the kernel is cut up.

    Attributes:
      page: positions of a page.
      pages: pages of a block, which are fetched together.
      queries: rows of a block.
    """

    page: int = 64
    pages: int = 4
    queries: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paged:
    """Keys and values of groups in pages.

    Attributes:
      kv: of all pages; keys at even heads, values at odd ones.
      lengths: tokens of each row, of its prompt and its own.
      table: the pages of each row in order; what follows the last is 0.
    """

    kv: Float[Array, "N S 2*K E"]
    lengths: Int[Array, " B"]
    table: Int[Array, "B M"]


def in_pages(
    prompt: Float[np.ndarray, "2 P K Lp E"],
    own: Float[np.ndarray, "2 P G K W E"],
    prompt_lengths: Int[np.ndarray, " P"],
    lengths: Int[np.ndarray, "P G"],
    page: int,
) -> Paged:
    """Lays out keys and values; whole pages of a prompt stand there once for its group.

    A completion goes on in the page that its prompt has begun, which therefore every row has of
    its own.

    Args:
      prompt: keys and values of the prompts, aligned on the right as `PromptCache` has them.
      own: of the completions, oldest first.
      prompt_lengths: real tokens of the prompts.
      lengths: real tokens of the completions.
      page: positions of a page.
    """
    pages: list[np.ndarray] = []

    def add(tokens: np.ndarray) -> list[int]:
        first = len(pages)
        tokens = np.pad(tokens, [(0, -len(tokens) % page), (0, 0), (0, 0)])
        pages.extend(tokens.reshape(-1, page, *tokens.shape[1:]))
        return list(range(first, len(pages)))

    def in_turns(x: np.ndarray) -> np.ndarray:  # [2 ... K T E] -> [... T 2*K E]
        x = np.moveaxis(x, 0, -2).swapaxes(-4, -3)
        return x.reshape(*x.shape[:-3], -1, x.shape[-1])

    rows, each = [], (in_turns(prompt), in_turns(own), prompt_lengths, lengths)
    for tokens, group, n, own_lengths in zip(*each, strict=True):
        real = tokens[len(tokens) - n :]
        whole = n // page * page
        shared = add(real[:whole])
        for completion, length in zip(group, own_lengths, strict=True):
            rows.append(shared + add(np.concatenate([real[whole:], completion[:length]])))
    table = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, numbers in zip(table, rows, strict=True):
        row[: len(numbers)] = numbers
    return Paged(
        kv=jnp.asarray(np.stack(pages)),
        lengths=jnp.asarray((prompt_lengths[:, None] + lengths).reshape(-1), jnp.int32),
        table=jnp.asarray(table),
    )


def attend_in_pages(
    q: Float[Array, "P G H E"], paged: Paged, blocks: Blocks, *, reference: bool = False
) -> Float[Array, "P G H E"]:
    """Attention of one query of each row, the youngest, to all tokens of the row.

    Args:
      q: queries.
      paged: keys and values.
      blocks: how the kernel is cut up.
      reference: by the plain definition that comes with the kernel.
    """
    # Imported where it is used: half a second.
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention as kernels

    rows = q.reshape(-1, *q.shape[2:])
    begin = jnp.arange(len(rows) + 1, dtype=jnp.int32)  # one query a row
    args = (rows, paged.kv, paged.lengths, paged.table, begin, jnp.array([len(rows)], jnp.int32))
    scale = q.shape[-1] ** -0.5
    if reference:
        return kernels.ref_ragged_paged_attention(*args, sm_scale=scale).reshape(q.shape)
    mixed = kernels.ragged_paged_attention(
        *args,
        sm_scale=scale,
        num_kv_pages_per_block=min(blocks.pages, paged.table.shape[1]),
        num_queries_per_block=min(blocks.queries, len(rows)),
    )
    return mixed.reshape(q.shape)


def on_v5e(shape: argparse.Namespace, width: int, blocks: Blocks) -> dict[str, jax.stages.Compiled]:
    """Both compiled for a chip of a TPU v5e; `cascade` and `paged`.

    Args:
      shape: from the command line.
      width: W.
      blocks: how the kernel is cut up.
    """
    # It would look for a TPU's metadata server, and take a lock that only a real TPU needs.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[:1]
    mesh = jax.make_mesh((1,), ("x",), devices=chips, axis_types=(AxisType.Auto,))
    P, G, K, H, E = shape.prompts, shape.group, shape.kv_heads, shape.heads, shape.head_dim
    Lp, S = shape.prompt_len, blocks.page
    shared, M = Lp // S, -(-(Lp + width) // S)

    def array(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=where)

    def cascade(q: Array, own: list[Array], prompt: list[Array], mask: Array, seen: Array) -> Array:
        shared = (prompt[0], prompt[1], mask)
        return attend(q[:, :, None], own[0], own[1], seen, shared)[:, :, 0]

    def paged(q: Array, kv: Array, lengths: Array, table: Array) -> Array:
        return attend_in_pages(q, Paged(kv=kv, lengths=lengths, table=table), blocks)

    q = array(P, G, H, E)
    own, prompt = [array(P, G, K, width, E)] * 2, [array(P, K, Lp, E)] * 2
    masks = array(P, Lp, dtype=bool), array(P, G, 1, width, dtype=bool)
    kv = array(P * shared + P * G * (M - shared), S, 2 * K, E)
    lengths, table = (array(*sizes, dtype=jnp.int32) for sizes in ((P * G,), (P * G, M)))
    with use_abstract_mesh(mesh.abstract_mesh):  # Pallas asks it what TPU it compiles for
        return {
            "cascade": jax.jit(cascade).lower(q, own, prompt, *masks).compile(),
            "paged": jax.jit(paged).lower(q, kv, lengths, table).compile(),
        }


def tokens_read(
    prompt_len: int, lengths: Int[np.ndarray, "P G"], width: int, block: int
) -> dict[str, int]:
    """Positions whose keys and values one step reads.

    Args:
      prompt_len: tokens of every prompt.
      lengths: tokens of each completion; 0: it is over.
      width: positions of the rings.
      block: positions of a block of the kernel.
    """
    running = lengths[lengths > 0]
    begun = (lengths > 0).any(axis=1).sum() * prompt_len
    return {
        "cascade": len(lengths) * prompt_len + lengths.size * width,
        "paged": int((-(-(prompt_len + running) // block) * block).sum()),
        "least": int(begun + running.sum()),
    }


def drawn(
    prompt_len: int, lengths: Int[np.ndarray, "P G"], limit: int, lanes: tuple[int, int], block: int
) -> dict[str, int]:
    """Positions read while slots draw all completions one after another, as the engine does.

    Rings are as wide as the longest that runs needs. Slots with nothing left to do go on taking
    part in the cascade: the engine drops them on CPUs only.

    Args:
      prompt_len: tokens of every prompt.
      lengths: tokens of each completion in the end.
      limit: longest completion.
      lanes: how many, and slots of each; a lane holds one prompt.
      block: positions of a block of the kernel.
    """
    ends, width = lengths.reshape(-1), 0
    taken = lanes[0] * lanes[1]
    age, end = np.ones(taken, int), ends[:taken].copy()
    total = {"cascade": 0, "paged": 0, "least": 0}
    while (age > 0).any():
        needed = bucket(min(int(age.max()) + _STEPS - 1, max(1, limit - 1)), _STEPS)
        width = needed if needed > width or needed <= width // 2 else width
        for _ in range(_STEPS):
            over = np.flatnonzero((age > 0) & (age >= end))
            begun = ends[taken : taken + len(over)]
            taken += len(begun)
            age[over], age[over[: len(begun)]] = 0, 1
            end[over[: len(begun)]] = begun
            if not (age > 0).any():
                break
            for name, n in tokens_read(prompt_len, age.reshape(lanes), width, block).items():
                total[name] += n
            age[age > 0] += 1
    return total


def main() -> None:
    """Counts, compiles and prints the line."""
    parser = argparse.ArgumentParser()
    shape = {"prompts": 4, "group": 16, "prompt-len": 1024, "new-tokens": 512}
    shape |= {"heads": 16, "kv-heads": 8, "head-dim": 128}
    for name, default in shape.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for field in dataclasses.fields(Blocks):
        parser.add_argument(f"--block-{field.name}", type=int, default=field.default)
    parser.add_argument("--lengths", default="fixed", help="fixed, or geometric:MEAN")
    args = parser.parse_args()
    cut = Blocks(page=args.block_page, pages=args.block_pages, queries=args.block_queries)
    block = cut.page * cut.pages
    P, G, limit = args.prompts, args.group, args.new_tokens
    lengths = draw_lengths(args.lengths, (_WAVES * P, G), limit, seed=0)
    width, tokens = bucket(int(lengths[:P].max()), _STEPS), lengths.sum()
    a_token = 2 * args.kv_heads * args.head_dim * 2  # bf16
    few, many = layout(_WAVES * P, G, P * G, shards=1)
    read = {"step": (tokens_read(args.prompt_len, lengths[:P], width, block), 1)}
    waves = [
        drawn(args.prompt_len, lengths[i * P : (i + 1) * P], limit, (P, G), block)
        for i in range(_WAVES)
    ]
    read["waves"] = {kind: sum(wave[kind] for wave in waves) for kind in waves[0]}, tokens
    read["slots"] = drawn(args.prompt_len, lengths, limit, (many, few), block), tokens
    report: dict[str, Any] = {"unit": "MB of keys and values of one layer; a token but for step"}
    for name, (found, of) in read.items():
        report[name] = {kind: n * a_token / of / 1e6 for kind, n in found.items()}
        report[name]["paged_to_cascade"] = found["paged"] / found["cascade"]
    if "TPU_LIBRARY_PATH" in os.environ:
        report["compiled"] = {}
        for name, program in on_v5e(args, width, cut).items():
            memory, cost = program.memory_analysis(), program.cost_analysis()
            assert memory is not None  # this compiler says both
            assert cost is not None
            report["compiled"][name] = {
                "arguments_mb": memory.argument_size_in_bytes / 1e6,
                "temporaries_mb": memory.temp_size_in_bytes / 1e6,
                "code_mb": memory.generated_code_size_in_bytes / 1e6,
                "said_to_be_read_mb": cost["bytes accessed"] / 1e6,
            }
    report |= {"mean_length": float(lengths.mean()), "width": width, "blocks": vars(cut)}
    print_line(report | {"shape": vars(args), "jax": jax.__version__})


if __name__ == "__main__":
    main()
