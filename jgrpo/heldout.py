"""Evaluation on held-out prompts: greedy, and sampled for pass@k and maj@k.

The statistics are in `evaluate.py`. The same prompts are asked each time, and their noise depends
on the seed and the step alone.

Letters: P prompts, N samples per prompt.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree
from numpy import ndarray

from jgrpo.collect import completion_ids, score_rollouts, texts
from jgrpo.config import Config
from jgrpo.data.chat import prompt_batch
from jgrpo.data.tasks import Task
from jgrpo.evaluate import EvalReport, evaluation_report
from jgrpo.keys import named_key
from jgrpo.models.load import LoadedModel
from jgrpo.rewards.score import Reward, begin
from jgrpo.rewards.text import parse_number
from jgrpo.rollout.engine import Engine
from jgrpo.rollout.sample import Sampling
from jgrpo.types import Example, Rollouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What an evaluation needs besides weights.

    Attributes:
      cfg: the run's config; sections `eval`, `rollout` and `data` are read.
      task: its held-out source is asked.
      model: for the tokenizer and its ids.
      engine: the sampler.
      rewards: the reward functions; the first decides what is correct.
      check: called again and again while sampling; may raise to give up.
    """

    cfg: Config
    task: Task
    model: LoadedModel
    engine: Engine
    rewards: Sequence[Reward]
    check: Callable[[], None] | None = None

    def evaluate(self, params: PyTree, key: Key[Array, ""]) -> EvalReport:
        """Asks the first `eval.num_prompts` held-out prompts, greedily and by sampling.

        A completion is correct if the first reward function gives it 1 or more.

        Args:
          params: the policy's weights.
          key: names the noise of the samples.
        """
        count = min(self.cfg.eval.num_prompts, len(self.task.heldout))
        examples = [self.task.heldout[i] for i in range(count)]
        greedy = self._ask(params, examples, named_key(key, "greedy"), 1, 0.0)
        sampled = None
        if self.cfg.eval.samples_per_prompt:
            sampled = self._ask(
                params,
                examples,
                named_key(key, "sampled"),
                self.cfg.eval.samples_per_prompt,
                self.cfg.eval.temperature,
            )
        return evaluation_report(
            greedy_correct=greedy.correct[:, 0],
            greedy_length=greedy.lengths[:, 0],
            greedy_finished=greedy.finished[:, 0],
            greedy_format=_in_format(self.task.format_pattern, greedy.completions),
            sampled_correct=None if sampled is None else sampled.correct,
            **_votes(self.task, examples, sampled),
            seed=self.cfg.run.seed,
        )

    def _ask(
        self,
        params: PyTree,
        examples: Sequence[Example],
        key: Key[Array, ""],
        group_size: int,
        temperature: float,
    ) -> "_Asked":
        """Asks all prompts, `eval.batch_prompts` at a time."""
        size = self.cfg.eval.batch_prompts
        parts = [
            self._ask_batch(params, examples, first, key, group_size, temperature)
            for first in range(0, len(examples), size)
        ]
        return _Asked(
            correct=np.concatenate([part.correct for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            finished=np.concatenate([part.finished for part in parts]),
            completions=[text for part in parts for text in part.completions],
        )

    def sample(
        self,
        params: PyTree,
        examples: Sequence[Example],
        first_uid: int,
        key: Key[Array, ""],
        group_size: int,
        temperature: float,
    ) -> Rollouts:
        """Samples without the filters of training.

        Args:
          params: weights to sample with.
          examples: what is asked.
          first_uid: number of the first prompt; numbers and key name the noise.
          key: names the noise.
          group_size: completions per prompt.
          temperature: 0 is greedy.
        """
        cfg, model = self.cfg, self.model
        uids = np.arange(first_uid, first_uid + len(examples), dtype=np.int32)
        return self.engine.generate(
            params,
            prompt_batch(model.tokenizer, examples, uids, cfg=cfg.data, pad_id=model.pad_id),
            key,
            group_size=group_size,
            max_tokens=cfg.rollout.max_completion_tokens,
            sampling=Sampling(temperature=temperature),
            stop=cfg.rollout.stop,
            check=self.check,
        )

    def judged(
        self,
        params: PyTree,
        examples: Sequence[Example],
        first_uid: int,
        key: Key[Array, ""],
        group_size: int,
        temperature: float,
    ) -> tuple[Rollouts, list[str], Bool[ndarray, "P N"]]:
        """Samples as `sample`; also the completions as text, and whether they are correct."""
        rollouts = self.sample(params, examples, first_uid, key, group_size, temperature)
        ids = completion_ids(rollouts)
        completions = texts(self.model, ids)
        scoring = begin(self.rewards, examples, group_size=group_size)
        scores = score_rollouts(scoring, ids, completions)
        return rollouts, completions, (scores.columns[:, 0] >= 1.0).reshape(-1, group_size)

    def _ask_batch(
        self,
        params: PyTree,
        examples: Sequence[Example],
        first: int,
        key: Key[Array, ""],
        group_size: int,
        temperature: float,
    ) -> "_Asked":
        rows = examples[first : first + self.cfg.eval.batch_prompts]
        rollouts, completions, correct = self.judged(
            params, rows, first, key, group_size, temperature
        )
        return _Asked(
            correct=correct,
            lengths=np.asarray(rollouts.mask).sum(-1),
            finished=np.asarray(rollouts.finished),
            completions=completions,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """What was seen, prompt by prompt."""

    correct: Bool[ndarray, "P N"]
    lengths: Int[ndarray, "P N"]
    finished: Bool[ndarray, "P N"]
    completions: Sequence[str]


def _votes(task: Task, examples: Sequence[Example], sampled: _Asked | None) -> dict[str, list[Any]]:
    """The answers that maj@k counts, and what they are compared with; nothing if there are none."""
    if sampled is None or task.read_answer is None:
        return {}
    answers = [task.read_answer(text) for text in sampled.completions]
    size = sampled.correct.shape[1]
    return {
        "sampled_answers": [answers[i : i + size] for i in range(0, len(answers), size)],
        "references": [parse_number(example.answer) or example.answer for example in examples],
    }


def _in_format(pattern: str | None, completions: Sequence[str]) -> Bool[ndarray, " P"] | None:
    if pattern is None:
        return None
    return np.array([re.fullmatch(pattern, text) is not None for text in completions])
