"""What a step has taught, as a skill: a summary that the policy writes, and a completion with it.

Neither is trained. Letters: P prompts, G completions per prompt.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Key, PyTree

from jgrpo.algo.skills import arise_rs
from jgrpo.buckets import bucket, left_padded
from jgrpo.collected import Collected
from jgrpo.config import Config
from jgrpo.contexts import Words
from jgrpo.keys import named_key
from jgrpo.models.load import LoadedModel
from jgrpo.rewards.score import Reward, begin, finish
from jgrpo.rollout.engine import Engine
from jgrpo.rollout.meter import Meter
from jgrpo.rollout.sample import Sampling, drawing_limits
from jgrpo.strategy.skills import abstract, skill_of, used
from jgrpo.types import Prompts

TRACES = 2
"""Right completions that a skill is made of, at most."""
TRACE_CHARACTERS = 400
"""Of each, at most."""
SUMMARY_TOKENS = 192
"""Of a summary, at most."""
_SUMMARY = Sampling(temperature=0.7, top_p=0.95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilling:
    """What making a skill needs besides weights and completions.

    Attributes:
      cfg: the run's config, with the sampling temperature of the step.
      model: for tokenizer and token ids.
      engine: the sampler.
      rewards: the reward functions.
      of: who asks, for errors.
    """

    cfg: Config
    model: LoadedModel
    engine: Engine
    rewards: Sequence[Reward]
    of: str

    def distilled(
        self, params: PyTree, step: int, key: Key[Array, ""], collected: Collected
    ) -> Collected:
        """The step with the skill that it has brought, if one of its groups is mixed.

        The first such group gives the right completions. Unaided are those without a skill.

        Args:
          params: the policy.
          step: number of the step.
          key: names the noise.
          collected: the completions of the step.

        References:
          ARISE, arXiv:2603.16060; `skill_conclusion.py`. Departs: the words are ours, and which
          group it is is assumed.
        """
        right = (collected.rewards >= self.cfg.method.max_value) & collected.valid
        mixed = np.any(right, axis=1) & np.any(collected.valid & ~right, axis=1)
        told = dict.fromkeys(("skill/made", "skill/written", "skill/verified"), 0.0)
        if not mixed.any():
            return dataclasses.replace(collected, told={**collected.told, **told})
        p = int(mixed.argmax())
        places = np.flatnonzero(right[p])[:TRACES].tolist()
        traces = [collected.texts[p][g][:TRACE_CHARACTERS] for g in places]
        words = Words(cfg=self.cfg, model=self.model, examples=[collected.examples[p]], of=self.of)
        started, meter = time.perf_counter(), Meter()
        limit = min(SUMMARY_TOKENS, self.cfg.rollout.max_completion_tokens)
        how = {"max_tokens": limit, "sampling": _SUMMARY}
        asks = words.summary(traces)
        summary = self._drawn(params, asks, named_key(key, "summary"), meter, **how)
        written = skill_of(self._text(summary))
        skill, verified = written or abstract(traces[0]), False
        if skill is not None:
            verified = self._verified(params, step, key, words, skill.text, meter)
            unaided = not used(collected.rollouts)[p]
            skill = dataclasses.replace(skill, utility=arise_rs(unaided, verified))
        told = {
            "skill/made": float(skill is not None),
            "skill/written": float(written is not None),
            "skill/verified": float(verified),
        }
        return dataclasses.replace(
            collected,
            skill=skill,
            told={**collected.told, **told},
            meter=collected.meter + meter,
            rollout_s=collected.rollout_s + time.perf_counter() - started,
        )

    def _verified(
        self,
        params: PyTree,
        step: int,
        key: Key[Array, ""],
        words: Words,
        skill: str,
        meter: Meter,
    ) -> bool:
        """Whether one completion that works with the skill is right."""
        (example,) = words.examples
        ids = words.skilled(example, skill)
        how = drawing_limits(self.cfg.rollout)
        tokens = self._drawn(params, ids, named_key(key, "verify"), meter, **how)
        scoring = begin(self.rewards, [example], group_size=1, step=step)
        scoring.add(0, self._text(tokens), tokens)
        scores = finish(scoring)
        return bool(scores.valid[0] and scores.total[0] >= self.cfg.method.max_value)

    def _drawn(
        self,
        params: PyTree,
        ids: Sequence[int],
        key: Key[Array, ""],
        meter: Meter,
        **how: Any,
    ) -> list[int]:
        """The tokens of one completion; `how` is what `Engine.generate` takes of limits."""
        tokens, mask = left_padded([ids], bucket(len(ids)))
        asked = Prompts(uid=np.zeros(1, np.int32), tokens=tokens, mask=mask)
        drawn = dataclasses.replace(self.engine, slots=1).generate(
            params, asked, key, group_size=1, meter=meter, **how
        )
        return np.asarray(drawn.tokens)[0, 0][np.asarray(drawn.mask)[0, 0]].tolist()

    def _text(self, ids: list[int]) -> str:
        return str(self.model.tokenizer.decode(ids, skip_special_tokens=True))
