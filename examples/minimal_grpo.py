"""GRPO in one file: a small language model learns to be careful.

Usage: python examples/minimal_grpo.py [STEPS]

The model (half a million weights, in jgrpo/assets/tiny) was taught sums by somebody who often
forgot to carry. Asked `61+72-79=?` it reasons step by step, a token for each character:
`61+72=133;133-79=54;#54`. Nobody shows it a better solution here. It draws eight completions for
each of 32 prompts; the number behind the `#` is right or wrong; and what the right ones did
differently from the wrong ones of the same prompt becomes more likely. Nothing else happens, and in
20 steps more than half of the slips are gone.

This file imports nothing of the package, which does the same for real models on many devices,
with every choice made below exchangeable. Letters: B completions, T tokens, S all tokens of a
row, D model width, K key/value heads, Q query heads to each of those, E head width, V vocabulary.

The method is that of DeepSeekMath (arXiv:2402.03300, section 4.1) without its KL penalty.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file

NUM_PROMPTS = 32  # a step asks so many prompts ...
GROUP_SIZE = 8  # ... and draws so many completions of each, which are compared with each other,
MINIBATCHES = 2  # then makes so many updates, each from its share of the prompts
CLIP = 0.2  # the ratio of new to old probability beyond which a token earns nothing more
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(3e-4, b2=0.99, weight_decay=0.0)
)

PROMPT_TOKENS = 10  # 61+72-79=? is as long as they get
COMPLETION_TOKENS = 48  # what has not ended by then is cut off
ROW_TOKENS = PROMPT_TOKENS + COMPLETION_TOKENS

ASSETS = Path(__file__).resolve().parents[1] / "jgrpo" / "assets" / "tiny"
CONFIG = json.loads((ASSETS / "config.json").read_text())
VOCABULARY = json.loads((ASSETS / "tokenizer.json").read_text())["model"]["vocab"]
CHARACTERS = {token: character for character, token in VOCABULARY.items()}
PAD, EOS = VOCABULARY["<pad>"], VOCABULARY["<eos>"]


# ---- The task -----------------------------------------------------------------------------------


def draw_problem(rng, *, heldout):
    """Draws a prompt and its answer; every partial result lies in 0..199.

    A tenth of all problems, picked by a hash of their text, is held out for the exam. The same ones
    were held out when the model was made.
    """
    while True:
        a, b, c = rng.integers(1, 100, size=3)
        first, second = rng.choice([1, -1], size=2)
        partial = a + first * b
        result = partial + second * c
        text = f"{a}{'+' if first > 0 else '-'}{b}{'+' if second > 0 else '-'}{c}"
        is_heldout = int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16) % 10 == 0
        if 0 <= partial < 200 and 0 <= result < 200 and is_heldout == heldout:
            return text + "=?", str(result)


def reward(completion, answer):
    """Returns 1 if the only `#` of the completion is followed by the right number, else 0."""
    return float(completion.split("#")[1:] == [answer])


def encode(prompts):
    """Returns token ids [B, PROMPT_TOKENS], padded on the left: all completions start together."""
    ids = [[VOCABULARY[character] for character in prompt] for prompt in prompts]
    return np.array([[PAD] * (PROMPT_TOKENS - len(row)) + row for row in ids])


def decode(tokens):
    """Returns the text of one completion, up to its end-of-sequence token."""
    ids = [*tokens.tolist(), EOS]
    return "".join(CHARACTERS[token] for token in ids[: ids.index(EOS)])


# ---- The model: a Qwen3 -------------------------------------------------------------------------


def load_weights():
    """Reads the weights: those of each layer by the name of their part, such as `q_proj`."""
    layers = [{} for _ in range(CONFIG["num_hidden_layers"])]
    others = {}
    for name, tensor in load_file(ASSETS / "model.safetensors").items():
        parts = name.split(".")  # model.norm.weight or model.layers.3.self_attn.q_proj.weight
        home = layers[int(parts[2])] if parts[1] == "layers" else others
        home[parts[-2]] = jnp.asarray(tensor, jnp.float32)
    return {"layers": layers, **others}


def rms_norm(x, scale):
    """Scales vectors to a mean square of one, then each feature by its own factor."""
    return (
        x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + CONFIG["rms_norm_eps"]) * scale
    )


def rotate(x_BTKQE, position_T):
    """Turns pairs of features by angles that grow with the position (RoPE).

    Only differences of positions matter, so the padding before a prompt may be counted.
    """
    half = x_BTKQE.shape[-1] // 2
    frequency = CONFIG["rope_theta"] ** (-jnp.arange(half) / half)
    angle = position_T[:, None, None, None] * frequency
    x, y = x_BTKQE[..., :half], x_BTKQE[..., half:]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)


def forward(weights, tokens_BT, real_BS, cache=None, start=0):
    """Runs the model over tokens that stand at `start` and after it in their rows.

    Args:
      weights: as `load_weights` returns them.
      tokens_BT: token ids.
      real_BS: False at the padding of a row.
      cache: keys and values [B, S, K, 1, E] of each layer, to look back at and to add to;
        None if the tokens are the whole rows.
      start: position of the first token.

    Returns:
      Logits [B, T, V] for the token after each, and the cache with these tokens in it.
    """
    B, T = tokens_BT.shape
    K, E = CONFIG["num_key_value_heads"], CONFIG["head_dim"]
    position_T = start + jnp.arange(T)
    visible_BTS = real_BS[:, None, :] & (jnp.arange(real_BS.shape[1]) <= position_T[:, None])
    x_BTD = weights["embed_tokens"][tokens_BT]
    new_cache = []
    for i, w in enumerate(weights["layers"]):
        y_BTD = rms_norm(x_BTD, w["input_layernorm"])
        q = (y_BTD @ w["q_proj"].T).reshape(B, T, K, -1, E)
        k = (y_BTD @ w["k_proj"].T).reshape(B, T, K, 1, E)
        v = (y_BTD @ w["v_proj"].T).reshape(B, T, K, 1, E)
        q = rotate(rms_norm(q, w["q_norm"]), position_T)
        k = rotate(rms_norm(k, w["k_norm"]), position_T)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[i][0], k, start, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[i][1], v, start, axis=1)
        new_cache.append((k, v))
        scores = jnp.einsum("btkqe,bskze->bkqts", q, k) / np.sqrt(E)
        attention = jax.nn.softmax(jnp.where(visible_BTS[:, None, None], scores, -1e30))
        mixed = jnp.einsum("bkqts,bskze->btkqe", attention, v).reshape(B, T, -1)
        x_BTD = x_BTD + mixed @ w["o_proj"].T
        y_BTD = rms_norm(x_BTD, w["post_attention_layernorm"])
        gated = jax.nn.silu(y_BTD @ w["gate_proj"].T) * (y_BTD @ w["up_proj"].T)
        x_BTD = x_BTD + gated @ w["down_proj"].T
    return rms_norm(x_BTD, weights["norm"]) @ weights["embed_tokens"].T, new_cache


# ---- Sampling -----------------------------------------------------------------------------------


def real_positions(prompts):
    """Returns [B, ROW_TOKENS]: False at the padding before the prompts."""
    return jnp.pad(prompts != PAD, ((0, 0), (0, COMPLETION_TOKENS)), constant_values=True)


@jax.jit
def sample(weights, prompts, key, greedy):
    """Draws completions [B, COMPLETION_TOKENS] and the log-prob of each token drawn.

    A completion counts up to its first end of sequence; what follows it means nothing.
    """
    real_BS = real_positions(prompts)
    empty = jnp.zeros((*real_BS.shape, CONFIG["num_key_value_heads"], 1, CONFIG["head_dim"]))
    cache = [(empty, empty)] * CONFIG["num_hidden_layers"]
    logits_BTV, cache = forward(weights, prompts, real_BS, cache)

    def draw_token(carry, position):
        logits_BV, cache = carry
        drawn = jax.random.categorical(jax.random.fold_in(key, position), logits_BV)
        token = jnp.where(greedy, jnp.argmax(logits_BV, axis=-1), drawn)
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), token[:, None], axis=1)[:, 0]
        logits_BTV, cache = forward(weights, token[:, None], real_BS, cache, position)
        return (logits_BTV[:, -1], cache), (token, logp)

    positions = PROMPT_TOKENS + jnp.arange(COMPLETION_TOKENS)
    _, (tokens, logp) = jax.lax.scan(draw_token, (logits_BTV[:, -1], cache), positions)
    return tokens.T, logp.T


# ---- Learning -----------------------------------------------------------------------------------


def advantages(rewards):
    """Compares each completion with its group: [groups, GROUP_SIZE] in units of the group's spread.

    A group that is all right or all wrong teaches nothing.
    """
    centered = rewards - rewards.mean(axis=1, keepdims=True)
    return centered / (rewards.std(axis=1, keepdims=True) + 1e-4)


def grpo_loss(weights, prompts, completions, mask_BT, old_logp_BT, advantage_B):
    """Returns the clipped policy-gradient loss, the mean over completions of their token means.

    Of several updates after one rollout, the first finds every ratio at 1 and is the plain policy
    gradient; at the later ones the clip keeps the policy near the one that drew the completions.
    """
    rows = jnp.concatenate([prompts, completions], axis=1)
    logits_BTV, _ = forward(weights, rows[:, :-1], real_positions(prompts)[:, :-1])
    logp_BTV = jax.nn.log_softmax(logits_BTV[:, PROMPT_TOKENS - 1 :])
    logp_BT = jnp.take_along_axis(logp_BTV, completions[:, :, None], axis=2)[:, :, 0]
    ratio_BT = jnp.exp(logp_BT - old_logp_BT)
    clipped_BT = jnp.clip(ratio_BT, 1 - CLIP, 1 + CLIP)
    gain_BT = jnp.minimum(ratio_BT * advantage_B[:, None], clipped_BT * advantage_B[:, None])
    return -jnp.mean(jnp.sum(gain_BT * mask_BT, axis=1) / jnp.sum(mask_BT, axis=1))


@jax.jit
def update(weights, opt_state, batch):
    """Takes one optimizer step down the gradient of the loss."""
    gradient = jax.grad(grpo_loss)(weights, *batch)
    change, opt_state = OPTIMIZER.update(gradient, opt_state, weights)
    return optax.apply_updates(weights, change), opt_state


# ---- The loop -----------------------------------------------------------------------------------


def examine(weights, exam):
    """Prints how many problems the model solves with its likeliest tokens, and shows one."""
    prompts, answers = zip(*exam, strict=True)
    tokens, _ = sample(weights, encode(prompts), jax.random.key(0), True)
    completions = [decode(row) for row in np.asarray(tokens)]
    correct = [reward(*pair) for pair in zip(completions, answers, strict=True)]
    print(f"greedy accuracy: {100 * np.mean(correct):.1f} %   e.g. {prompts[0]} {completions[0]}")


def main(steps):
    """Trains for some steps, with an exam on held-out problems before and after."""
    rng = np.random.default_rng(0)
    exam = [draw_problem(rng, heldout=True) for _ in range(NUM_PROMPTS * GROUP_SIZE)]
    weights = load_weights()
    opt_state = OPTIMIZER.init(weights)
    examine(weights, exam)
    for step in range(1, steps + 1):
        began = time.monotonic()
        problems = [draw_problem(rng, heldout=False) for _ in range(NUM_PROMPTS)]
        asked = [problem for problem in problems for _ in range(GROUP_SIZE)]
        prompts = encode([prompt for prompt, _ in asked])
        tokens, logp = sample(weights, prompts, jax.random.key(step), False)

        tokens = np.asarray(tokens)
        ended_before = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS)
        mask = ended_before == 0  # the first end of sequence belongs to the completion
        rewards = np.array([reward(decode(t), a) for t, (_, a) in zip(tokens, asked, strict=True)])
        advantage = advantages(rewards.reshape(NUM_PROMPTS, GROUP_SIZE)).reshape(-1)

        for part in np.split(np.arange(len(asked)), MINIBATCHES):
            batch = [array[part] for array in (prompts, tokens, mask, logp, advantage)]
            weights, opt_state = update(weights, opt_state, batch)
        jax.block_until_ready(weights)
        print(
            f"step {step:3d}   reward {rewards.mean():.2f}   tokens {mask.sum(axis=1).mean():.1f}"
            f"   {time.monotonic() - began:.1f} s",
            flush=True,
        )
    examine(weights, exam)


if __name__ == "__main__":
    main(steps=int(sys.argv[1]) if len(sys.argv) > 1 else 20)
