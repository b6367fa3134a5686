"""What a plan wants in words, as tokens: hints, drafts, answers and solutions around a prompt.

Letters: P prompts, N places of the pool.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from jgrpo.algo import Round, Want
from jgrpo.algo.delegating import calls_of
from jgrpo.algo.hinting import gate, hint_of
from jgrpo.config import Config
from jgrpo.data.chat import tokenize
from jgrpo.models.load import LoadedModel
from jgrpo.recalling import Recalled
from jgrpo.rewards.experts import Answer
from jgrpo.rewards.predictions import mean_predictions
from jgrpo.solutions import solution_ids
from jgrpo.strategy.asks import Asks
from jgrpo.strategy.skills import Chosen
from jgrpo.types import Example, Message, Rollouts

Unmet: TypeAlias = Callable[[Sequence[tuple[Example, str]]], list[list[str]]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """Writes what is wanted of some prompts.

    Attributes:
      cfg: the run's config; its section `context` holds the words.
      model: for tokenizer and token ids.
      examples: the prompts.
      of: who asks, for errors.
      stored: the completion that comes back for each of the first prompts.
      skills: the skill that was chosen for each prompt; empty: none was.
      unmet: gives the criteria that completions fail; None: nobody asks.
    """

    cfg: Config
    model: LoadedModel
    examples: Sequence[Example]
    of: str
    stored: Sequence[Recalled] = ()
    skills: Sequence[Chosen] = ()
    unmet: Unmet | None = None

    @functools.cached_property
    def solutions(self) -> list[list[int]]:
        """The tokens of each prompt's worked solution."""
        return solution_ids(self.model.tokenizer, self.examples, of=self.of)

    @functools.cached_property
    def phrase(self) -> list[int]:
        """The tokens of the exit phrase."""
        return self._ids(self.cfg.context.exit_phrase)

    def asks(self, wanted: Round, pool: Rollouts | None) -> Asks:
        """What is wanted, as tokens.

        Args:
          wanted: a round with wants.
          pool: what has been drawn before it, in the places of the pool.

        Raises:
          ValueError: if the data lack a solution or an answer that is wanted.
        """
        wants = wanted.wants
        begun = [self._beginning(want, pool) for want in wants]
        failed = self._failed(wants, pool)
        contexts = [self._context(want, pool, failed) for want in wants]
        limit = self.cfg.rollout.max_completion_tokens
        most, given = [want.limit or limit for want in wants], [not want.drawn for want in wants]
        return Asks(
            prompt=np.array([want.prompt for want in wants]),
            first=np.array([want.first for want in wants]),
            counts=np.array([want.count for want in wants]),
            beginnings=[tuple(tokens) for tokens, _ in begun],
            logps=[logps for _, logps in begun],
            contexts=() if all(context is None for context in contexts) else contexts,
            most=() if min(most, default=limit) >= limit else most,
            given=given if any(given) else (),
        )

    def _beginning(self, want: Want, pool: Rollouts | None) -> tuple[list[int], list[float]]:
        """The tokens that completions begin with, and the log-probs of those drawn before."""
        tokens, logps = list[int](), list[float]()
        if want.begin == "solution":
            tokens = self.solutions[want.prompt][: want.tokens]
        elif want.begin == "path":
            assert pool is not None
            at = (want.prompt, want.of, slice(0, want.tokens))
            tokens = np.asarray(pool.tokens)[at].tolist()
            logps = np.asarray(pool.behavior_logp)[at].tolist()
        elif want.begin == "stored":
            return self.stored[want.prompt]
        elif want.begin == "feedback":
            return self._commented(want, pool)
        elif want.begin == "answers":
            return self._answered(want, pool)
        if want.phrase:
            tokens = [*tokens, *self.phrase]
        if not want.drawn:
            tokens = [*tokens[: self.cfg.rollout.max_completion_tokens - 1], self.model.eos_ids[0]]
        return tokens, logps

    def _commented(self, want: Want, pool: Rollouts | None) -> tuple[list[int], list[float]]:
        """A draft without its end and a comment; log-probs of the draft. Both leave some room."""
        assert pool is not None
        said = self._draft(want.prompt, want.said, pool)
        limit = self.cfg.rollout.max_completion_tokens
        words = self._ids(self.cfg.context.feedback.replace("{feedback}", said))
        words = words[: min(self.cfg.method.feedback_tokens, limit - 2)]
        at = want.prompt, want.of
        there = np.asarray(pool.mask)[at] & ~np.isin(pool.tokens[at], self.model.eos_ids)
        draft = np.asarray(pool.tokens)[at][there][: limit - 1 - len(words)].tolist()
        return [*draft, *words], np.asarray(pool.behavior_logp)[at][: len(draft)].tolist()

    def _answered(self, want: Want, pool: Rollouts | None) -> tuple[list[int], list[float]]:
        """A draft, its end too, and the answers to its calls, cut to leave some room.

        Also the log-probs of the draft.
        """
        assert pool is not None
        at, said = (want.prompt, want.of), ""
        for j, call in enumerate(self._calls(*at, pool)):
            answer = self._answer(want.prompt, want.said + j, pool)
            texts = {"{call}": call, "{answer}": answer}
            said += str(_filled("", self.cfg.calls.answered, texts))
        there = np.asarray(pool.mask)[at]
        draft = np.asarray(pool.tokens)[at][there].tolist()
        words = self._ids(said)[: self.cfg.rollout.max_completion_tokens - 1 - len(draft)]
        return [*draft, *words], np.asarray(pool.behavior_logp)[at][there].tolist()

    def _failed(self, wants: Sequence[Want], pool: Rollouts | None) -> dict[Want, list[str]]:
        """The criteria that drafts fail, for wants that are to say them."""
        asking = [want for want in wants if want.context == "criteria"]
        if not asking:
            return {}
        assert self.unmet is not None
        drafts = [
            (self.examples[want.prompt], self._draft(want.prompt, want.of, pool)) for want in asking
        ]
        return dict(zip(asking, self.unmet(drafts), strict=True))

    def predicted(self, pool: Rollouts) -> Float[ndarray, "P 2"]:
        """What predictions, in the second half of the pool, tell of each prompt, on average."""
        places = range(pool.mask.shape[1] // 2, pool.mask.shape[1])
        numbers = range(len(self.examples))
        return mean_predictions([[self._draft(p, g, pool) for g in places] for p in numbers])

    def _draft(self, prompt: int, place: int, pool: Rollouts | None) -> str:
        """A completion of the pool as text."""
        assert pool is not None
        at = prompt, place
        ids = np.asarray(pool.tokens)[at][np.asarray(pool.mask)[at]].tolist()
        return str(self.model.tokenizer.decode(ids, skip_special_tokens=True))

    def gates(self, pool: Rollouts, places: range) -> Int[ndarray, "P N"]:
        """What is found of the hints in these places of the pool (`algo.hinting.Gate`)."""
        mask: Bool[ndarray, "P N"] = np.any(pool.mask, axis=-1)
        found = np.zeros(mask.shape, np.int64)
        for p, example in enumerate(self.examples):
            for place in places:
                if mask[p, place]:
                    hint = self._written(p, place, pool)
                    filled = _filled(example.prompt, self.cfg.context.hinted, {"{hint}": hint})
                    fits = len(self._tokenized(filled)) <= self.cfg.data.max_prompt_tokens
                    found[p, place] = gate(hint, example.answer, fits)
        return found

    def calls(self, pool: Rollouts, places: range) -> Int[ndarray, "P N"]:
        """Calls of the completions in these places of the pool that can be answered."""
        found = np.zeros(pool.mask.shape[:2], np.int64)
        for p, place in np.ndindex(len(found), len(places)):
            found[p, place] = len(self._calls(p, places[place], pool))
        return found

    def answers(self, pool: Rollouts, places: range) -> dict[tuple[int, int], Answer]:
        """The answers in form, by prompt and place, of those in these places of the pool."""
        mask, found = np.asarray(pool.mask), dict[tuple[int, int], Answer]()
        for p, place in zip(*np.nonzero(mask.any(axis=-1)), strict=True):
            at = int(p), int(place)
            if place in places and self._answer(*at, pool):
                caller, number = divmod(at[1] - places.start, self.cfg.method.calls_max)
                call = self._calls(at[0], caller, pool)[number]
                ids = np.asarray(pool.tokens)[at][mask[at]].tolist()
                found[at] = Answer(self.examples[p], call, self._draft(*at, pool), ids)
        return found

    def _calls(self, prompt: int, place: int, pool: Rollouts | None) -> list[str]:
        """The calls in a completion of the pool; none if no answer and no end would fit."""
        assert pool is not None
        room = self.cfg.rollout.max_completion_tokens - int(np.sum(pool.mask[prompt, place]))
        if room < 2:
            return []
        draft = self._draft(prompt, place, pool)
        return calls_of(self.cfg.calls.form, draft)[: self.cfg.method.calls_max]

    def _answer(self, prompt: int, place: int, pool: Rollouts | None) -> str:
        """What a completion of the pool answers; "" if it is not in form."""
        return hint_of(self.cfg.calls.answer_form, self._draft(prompt, place, pool))

    def _written(self, prompt: int, place: int, pool: Rollouts | None) -> str:
        """The hint in a completion of the pool."""
        return hint_of(self.cfg.context.hint_form, self._draft(prompt, place, pool))

    def _context(
        self, want: Want, pool: Rollouts | None, failed: Mapping[Want, Sequence[str]]
    ) -> list[int] | None:
        """What is asked in place of the prompt; None: the prompt itself."""
        example, words = self.examples[want.prompt], self.cfg.context
        if want.context == "hint":
            return self._around(example, words.hint, "{hint}", self._hint(example, want.of))
        if want.context == "draft":
            return self._around(
                example, words.draft, "{draft}", self._draft(want.prompt, want.of, pool)
            )
        if want.context == "teacher":
            return self._around(
                example, words.teacher, "{draft}", self._draft(want.prompt, want.of, pool)
            )
        if want.context == "hinter":
            draft = self._draft(want.prompt, want.of, pool)
            solution = {"{solution}": str(example.solution)}
            return self._around(example, words.hinter, "{draft}", draft, solution)
        if want.context == "hinted":
            hint = self._written(want.prompt, want.said, pool)
            return self._around(example, words.hinted, "{hint}", hint)
        if want.context == "main":
            return self._tokenized(_filled(example.prompt, self.cfg.calls.main, {}))
        if want.context == "called":
            call = self._calls(want.prompt, want.of, pool)[want.said]
            return self._around(example, self.cfg.calls.sub, "{call}", call)
        if want.context == "criteria":
            listed = "\n".join(failed[want])
            draft = self._draft(want.prompt, want.of, pool)
            return self._around(example, words.criteria, "{draft}", draft, {"{criteria}": listed})
        if want.context == "budget":
            told = {"{budget}": str(want.of)}
            return self._tokenized(_filled(example.prompt, words.budget, told))
        if want.context == "skill":
            return self.skilled(example, self.skills[want.prompt].text)
        if want.context == "predict":
            return self._tokenized(_filled(example.prompt, words.predict, {}))
        if want.context == "answer":
            if not example.answer:
                raise ValueError(f"{self.of} needs answers, {str(example.prompt)[:80]!r} has none")
            return self._around(example, words.answer, "{answer}", example.answer)
        return None

    def skilled(self, example: Example, skill: str) -> list[int]:
        """What is asked with a skill before it."""
        return self._around(example, self.cfg.context.skill, "{skill}", skill)

    def summary(self, traces: Sequence[str]) -> list[int]:
        """Asks for a skill, given right completions of the first prompt."""
        told = "\n\n".join(traces)
        return self._around(self.examples[0], self.cfg.context.lesson, "{traces}", told)

    def _hint(self, example: Example, level: int) -> str:
        """A hint of some level, from 1: the data's own, or the first steps of the solution.

        Of K levels the k-th shows ceil(k / K) of the steps before the last, which has the answer.
        """
        own = example.columns.get("hints") or [example.columns.get("hint")]
        if own[0]:
            return str(own[min(level, len(own)) - 1])
        if example.solution is None:
            raise ValueError(
                f"{self.of} needs hints: {str(example.prompt)[:80]!r} has no column 'hints' or "
                "'hint', and no worked solution to make them of"
            )
        mark, method = self.cfg.context.step_mark, self.cfg.method
        steps = example.solution.split(mark)[:-1]
        levels = method.hint_levels if method.plan == "scaffold" else 1
        shown = steps[: math.ceil(len(steps) * level / levels)]
        return "".join(step + mark for step in shown)

    def _around(
        self,
        example: Example,
        template: str,
        name: str,
        text: str,
        others: Mapping[str, str] = MappingProxyType({}),
    ) -> list[int]:
        """The prompt with a text around it, which is cut at its end if it is too long.

        A context may be as long as a prompt and a completion together.
        """
        limit = self.cfg.data.max_prompt_tokens + self.cfg.rollout.max_completion_tokens
        inserted = self._ids(text)
        while True:
            ids = self._tokenized(_filled(example.prompt, template, {**others, name: text}))
            if len(ids) <= limit or not inserted:
                return ids
            inserted = inserted[: len(inserted) - min(len(ids) - limit, len(inserted))]
            text = str(self.model.tokenizer.decode(inserted))

    def _tokenized(self, prompt: str | list[Message]) -> list[int]:
        data = self.cfg.data
        tokenizer, system = self.model.tokenizer, data.system_prompt
        return tokenize(tokenizer, prompt, chat=data.chat, system_prompt=system)

    def _ids(self, text: str) -> list[int]:
        return self.model.tokenizer(text, add_special_tokens=False)["input_ids"]


def _filled(
    prompt: str | list[Message], template: str, texts: Mapping[str, str]
) -> str | list[Message]:
    """A prompt in a template; of a chat it is the last message that is changed."""

    def fill(content: str) -> str:
        values = {**texts, "{prompt}": content}
        return re.sub(r"\{\w+\}", lambda found: values.get(found[0], found[0]), template)

    if isinstance(prompt, str):
        return fill(prompt)
    *before, last = prompt
    return [*before, {**last, "content": fill(last["content"])}]
