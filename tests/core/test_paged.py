"""benchmarks/paged.py: groups in pages attend as the cascade does, and what is counted as read."""

import jax.errors
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jgrpo.models.layers import attend

P, G, LP, W, H, K, E, PAGE = 2, 3, 21, 19, 4, 2, 128, 8
PROMPTS, LENGTHS = np.array([21, 10]), np.array([[1, 19, 7], [6, 5, 14]])


@pytest.fixture(scope="module")
def paged(benchmark):
    return benchmark("paged")


def group(dtype):
    """Queries, keys and values of prompts padded on the left, and of completions of all lengths."""
    noise = np.random.default_rng(0)
    shapes = (P, G, H, E), (2, P, K, LP, E), (2, P, G, K, W, E)
    return [np.asarray(jnp.asarray(noise.normal(size=shape), dtype)) for shape in shapes]


def cascade(q, prompt, own):
    real = np.arange(LP) >= LP - PROMPTS[:, None]
    seen = np.arange(W) < LENGTHS[..., None, None]
    prefix = (*map(jnp.asarray, prompt), jnp.asarray(real))
    return attend(q[:, :, None], *map(jnp.asarray, own), jnp.asarray(seen), prefix)[:, :, 0]


def by_pages(paged, dtype, **options):
    q, prompt, own = map(jnp.asarray, group(dtype))
    pages = paged.in_pages(np.asarray(prompt), np.asarray(own), PROMPTS, LENGTHS, PAGE)
    cut = paged.Blocks(page=PAGE, pages=2, queries=4)
    return paged.attend_in_pages(q, pages, cut, **options), cascade(q, prompt, own)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_groups_in_pages_attend_as_the_cascade(paged, dtype, bound):
    found, expected = by_pages(paged, dtype, reference=True)
    assert found.dtype == expected.dtype == dtype
    np.testing.assert_allclose(*(np.float32(x) for x in (found, expected)), rtol=bound, atol=bound)


@pytest.mark.xfail(
    strict=True,
    raises=jax.errors.JaxRuntimeError,
    reason="jax 0.10.2 interprets no kernel that reads a reshaped buffer, as this one does: "
    "'ReshapeTransform' object has no attribute 'indices'",
)
def test_interpreted_kernel_attends_as_the_cascade(paged):
    try:
        with pltpu.force_tpu_interpret_mode():
            found, expected = by_pages(paged, "float32")
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    finally:
        pltpu.reset_tpu_interpret_mode_state()


def test_whole_pages_of_a_prompt_are_kept_once(paged):
    """A prompt of 21 fills pages 0 and 1; its last 5 stand before each completion in own pages.

    Of these 5 + 1, 5 + 19 and 5 + 7 take 1, 3 and 2. The prompt of 10 fills page 8; 2 + 6, 2 + 5
    and 2 + 14 take 1, 1 and 2.
    """
    _, prompt, own = group("float32")
    pages = paged.in_pages(prompt, own, PROMPTS, LENGTHS, PAGE)
    assert pages.table.tolist() == [
        [0, 1, 2, 0, 0],
        [0, 1, 3, 4, 5],
        [0, 1, 6, 7, 0],
        [8, 9, 0, 0, 0],
        [8, 10, 0, 0, 0],
        [8, 11, 12, 0, 0],
    ]
    assert pages.kv.shape == (13, PAGE, 2 * K, E)
    np.testing.assert_array_equal(pages.kv[8, 0, 0], prompt[0, 1, 0, LP - 10])
    np.testing.assert_array_equal(pages.kv[12, 7, 3], own[1, 1, 2, 1, 13])


def test_counts_of_a_step(paged):
    """Prompts of 10, rings of 16: 2 * 10 + 4 * 16; rows of 13 and 20 in blocks of 8: 16 + 24."""
    found = paged.tokens_read(10, np.array([[3, 10], [0, 0]]), width=16, block=8)
    assert found == {"cascade": 84, "paged": 40, "least": 10 + 3 + 10}


@pytest.mark.parametrize(("lanes", "cascade"), [((2, 1), 80), ((1, 1), 40)])
def test_counts_of_a_rollout(paged, lanes, cascade):
    """Completions of 1 and 3 tokens after a prompt of 4: only the second is read, at 1 and at 2.

    Two lanes read 2 * 4 + 2 * 16 each time, one lane that takes both completions half of that.
    """
    lengths = np.array([[1], [3]])
    found = paged.drawn(4, lengths, limit=3, lanes=lanes, block=4)
    assert found == {"cascade": cascade, "paged": 8 + 8, "least": 5 + 6}
    assert lengths.tolist() == [[1], [3]]
