"""The section `context` of a run's settings, as those in `config.py`."""

import dataclasses
from typing import Annotated

from annotated_types import MinLen


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """What a method's plan writes around prompts: hints, drafts, answers; read by plans alone."""

    hint: str = "{prompt}\n\nHint: {hint}\n\n"
    """A prompt with a hint: from the columns `hint` or `hints`, else from the worked solution."""
    draft: str = "{prompt}\n\nA first attempt:\n{draft}\n\nWrite a better one.\n\n"
    """A prompt with a completion of its own."""
    answer: str = "{prompt}\n\nThe answer is {answer}. Show how to get there.\n\n"
    """A prompt with its answer."""
    criteria: str = (
        "{prompt}\n\nA first attempt:\n{draft}\n\nIt does not satisfy:\n{criteria}\n\n"
        "Write a better one.\n\n"
    )
    """A prompt with a completion of its own and the criteria of its rubric that this one fails."""
    teacher: str = (
        "{prompt}\n\nA student writes:\n{draft}\n\nWhat do you think of it, and why? Say it "
        "briefly, to the student.\n\n"
    )
    """A prompt with a completion of its own that is to be commented on."""
    budget: str = "{prompt}\n\nAnswer in at most {budget} tokens.\n\n"
    """A prompt with the length budget of the step, in tokens."""
    predict: str = (
        "{prompt}\n\nDo not solve this. Predict how you would do on it, as one JSON object: "
        '{"math_notion": [words of a right solution], "solution_length": tokens of a right '
        'solution, "pass_rate": right ones of 8 attempts}\n\n'
    )
    """A prompt that asks what the model's own completions will be like."""
    feedback: str = "\n\nFeedback: {feedback}\n\n"
    """A comment inside of a completion."""
    hinter: str = (
        "Somebody has failed at the question below. Write a hint of at most three sentences that "
        "shows the way and leaves the work to them. Tell neither the answer nor any result on the "
        "way.\n\nQuestion:\n{prompt}\n\nTheir attempt:\n{draft}\n\nA solution, for you alone:\n"
        "{solution}\n\nWrite what they miss, then the hint, in this form:\n"
        "<analysis>...</analysis>\n<hint>...</hint>\n\n"
    )
    """What a hinter reads: a prompt, a completion of its own that failed, its worked solution."""
    hint_form: str = "<hint>(.*?)</hint>"
    """Regular expression for what a hinter writes; its first group is the hint."""
    hinted: str = "{prompt}\n\n{hint}"
    """A prompt with the hint that a hinter has written for it."""
    skill: str = "SKILL:{skill}\n{prompt}"
    """A prompt with a skill of the library, which is a JSON object."""
    lesson: str = (
        "Below are right solutions of one question. Write what is to be learned from them for "
        "other questions, without their numbers, as one JSON object: "
        '{"skill_name": in_snake_case, "problem_type": ..., "key_insight": ..., '
        '"method": [two or three steps], "check": ...}, in at most 350 characters.\n\n'
        "Question:\n{prompt}\n\nSolutions:\n{traces}\n\n"
    )
    """What asks for a new skill: a prompt and right completions of its own."""
    exit_phrase: Annotated[str, MinLen(1)] = "\n\nTime is limited, stop thinking and answer.\n\n"
    """What ends the thinking of a completion that is cut short."""
    step_mark: Annotated[str, MinLen(1)] = "\n"
    """Text that ends a step of a worked solution, where hints are made of it."""
