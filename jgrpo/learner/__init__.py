"""From a batch with advantages to new weights."""
