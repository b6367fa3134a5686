"""What is asked next: prompts as text and as tokens, those of the next round made meanwhile."""

import copy
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PyTree
from numpy import ndarray
from transformers import PreTrainedTokenizerBase

from jgrpo.config import Config
from jgrpo.data.chat import prompt_batch
from jgrpo.data.order import prompt_ids
from jgrpo.data.tasks import Task
from jgrpo.strategy.replay import to_ask
from jgrpo.strategy.sampler import drawn_ids, is_drawn, places_looked_at
from jgrpo.types import Example, Prompts


class Asked(NamedTuple):
    """The prompts of a round.

    Attributes:
      ids: their numbers in the task's training data.
      examples: the prompts as text, with what is known of their answers.
      tokens: the prompts as tokens.
      cursor: prompts taken from the run's order, these included.
      replayed: how many of them, the first ones, a completion of an earlier step comes back for.
    """

    ids: Int[ndarray, " P"]
    examples: list[Example]
    tokens: Prompts
    cursor: int
    replayed: int = 0


class Asking:
    """Reads and tokenises prompts in a thread of its own, one round ahead.

    What is asked is a function of config and cursor: an order that is broken (a roll-back) costs
    the round made ahead and nothing else. With a method that draws its prompts it is a function of
    the method's state as well, and nothing is made ahead.
    """

    def __init__(self, cfg: Config, task: Task, tokenizer: PreTrainedTokenizerBase, pad_id: int):
        """Nothing is read yet.

        Args:
          cfg: the run's config.
          task: gives the examples.
          tokenizer: copied, since a tokenizer serves one thread.
          pad_id: fills prompts up on the left.
        """
        self._cfg, self._task, self._pad_id = cfg, task, pad_id
        self._tokenizer = copy.deepcopy(tokenizer)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asking")
        self._ahead: tuple[int, Future[Asked]] | None = None

    def take(self, cursor: int, strategy: Mapping[str, PyTree] | None = None) -> Asked:
        """The prompts at `cursor` in the run's order, or drawn there; those behind them are begun.

        Args:
          cursor: prompts taken so far.
          strategy: the states of the method's slots, for methods that draw.

        Raises:
          ValueError: if a prompt is too long or does not fit the chat settings, or there are too
            few to draw from.
        """
        if is_drawn(self._cfg):
            return self._thread.submit(self._draw, cursor, strategy or {}).result()
        if self._ahead is not None and self._ahead[0] == cursor:
            asked = self._ahead[1]
        else:
            asked = self._thread.submit(self._next, cursor)
        behind = cursor + self._cfg.data.num_prompts_per_step
        self._ahead = behind, self._thread.submit(self._next, behind)
        return asked.result()

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next(self, cursor: int) -> Asked:
        count = self._cfg.data.num_prompts_per_step
        return self._read(self._ids(cursor, count), cursor, cursor + count)

    def _draw(self, cursor: int, strategy: Mapping[str, PyTree]) -> Asked:
        if "replay" in strategy:
            store = jax.device_get(strategy["replay"])
            found = to_ask(self._cfg, store, self._ids, cursor)
            return self._read(found.ids, cursor, found.after)._replace(replayed=found.replayed)
        looked_at = places_looked_at(self._cfg)
        every = np.arange(len(self._task.train))
        candidates = self._ids(cursor, looked_at) if looked_at else every
        ids = drawn_ids(self._cfg, strategy, candidates, cursor)
        return self._read(ids, cursor, cursor + (looked_at or len(ids)))

    def _ids(self, cursor: int, count: int) -> Int[ndarray, " C"]:
        data, num_examples = self._cfg.data, len(self._task.train)
        seed = self._cfg.run.seed
        return prompt_ids(num_examples, seed, cursor, count, shuffle=data.shuffle)

    def _read(self, ids: Int[ndarray, " P"], cursor: int, after: int) -> Asked:
        data = self._cfg.data
        examples = [self._task.train[int(i)] for i in ids]
        uids = np.arange(cursor, cursor + len(examples), dtype=np.int32)
        tokens = prompt_batch(self._tokenizer, examples, uids, cfg=data, pad_id=self._pad_id)
        return Asked(np.asarray(ids, np.int32), examples, tokens, after)
