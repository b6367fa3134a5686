"""Sampling completions: logits to tokens, the decode loop, and the engine that drives it."""
