"""How completions are scored: reward functions, the isolated worker pool, weighted sums."""
