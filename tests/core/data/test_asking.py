"""Prompts made ahead are those that would be made now."""

import contextlib

import numpy as np
import pytest

from jgrpo import config_io
from jgrpo.asking import Asking
from jgrpo.data.tasks import load_task
from jgrpo.models.load import load


@pytest.fixture(scope="module")
def parts(root):
    cfg = config_io.load(root / "configs/quickstart.yaml", ["data.num_prompts_per_step=8"])
    model = load(cfg.model.path, init="random")
    return cfg, load_task(cfg.data), model.tokenizer, model.pad_id


def text(asked):
    return asked.ids.tolist(), [example.prompt for example in asked.examples]


def test_what_is_asked_depends_on_the_cursor_alone(parts):
    """In order, made ahead; and after a jump, as a roll-back makes one."""
    with contextlib.closing(Asking(*parts)) as asking:
        for cursor in (0, 8, 16, 400, 8, 16):
            asked = asking.take(cursor)
            with contextlib.closing(Asking(*parts)) as fresh:
                expected = fresh.take(cursor)
            assert text(asked) == text(expected)
            assert asked.tokens.uid.tolist() == list(range(cursor, cursor + 8))
            np.testing.assert_array_equal(asked.tokens.tokens, expected.tokens.tokens)


def test_an_error_made_ahead_is_raised_when_its_prompts_are_asked_for(parts):
    cfg, task, *model = parts
    order = Asking(*parts).take(8).ids.tolist()
    longest = {order[3]: "1+" * 5000}

    class Long:
        """The task's examples, one of them far too long."""

        def __len__(self):
            return len(task.train)

        def __getitem__(self, i):
            found = task.train[i]
            return type(found)(**(vars(found) | {"prompt": longest.get(i, found.prompt)}))

    changed = type(task)(**(vars(task) | {"train": Long()}))
    with contextlib.closing(Asking(cfg, changed, *model)) as asking:
        assert not set(asking.take(0).ids) & set(longest)
        with pytest.raises(ValueError, match="max_prompt_tokens"):
            asking.take(8)
