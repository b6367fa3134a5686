"""jgrpo: reinforcement learning of language models with group-relative methods, in JAX."""

__version__ = "0.1.0"
