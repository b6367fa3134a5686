"""Pins the names, signatures and fields that others build on.

A failure here is not always a bug: if the change is meant, edit the table and add a line with the
migration to CHANGELOG.md.
"""

import dataclasses
import inspect
from typing import Any

import pytest

from jgrpo import algo, config, types

# Parameter names in order: `*` begins the keyword-only ones, `=` marks those with a default.
SIGNATURES = {
    "method": "name **overrides",
    "advantages": "m rewards side= state=",
    "token_weights": "m mask",
    "policy_loss": "m logp * old_logp mask advantages ref_logp= weights= token_share= segments= "
    "behavior_logp= entropy= constraint_scale= entropy_mask= off_policy=",
    "top_entropy": "m entropy mask",
    "late_advantages": "m logp * old_logp mask targets weights=",
    "constraint_scale": "m logp * old_logp mask",
    "init_state": "m * num_prompts= outcomes=",
    "allocation": "m estimates budget",
    "value_loss": "values * old_values returns weights value_clip=",
    "gae": "rewards values mask * gamma= gae_lambda=",
}
# Fields in order; `=` marks those with a default.
RECORDS = {
    "Example": "prompt answer= solution= columns=",
    "Prompts": "uid tokens mask experts=",
    "Rollouts": "prompts tokens mask behavior_logp finished injected= standing= experts=",
    "Batch": "prompts tokens mask weights advantages old_logp unit_ratio= off_policy= "
    "contexts= ref_logp= behavior_logp= segments= old_values= returns= entropy_mask= "
    "score_weights= experts=",
    "TrainState": "step cursor params opt_state ref_params= strategy= aux=",
}
METHODS = ("grpo", "dr_grpo", "dapo", "cispo", "gspo", "gspo_token", "rloo", "sft")
CONFIG_KEYS = (
    *("run.dir", "run.steps", "run.seed", "checkpoint.every", "method", "optim.lr"),
    *("data.task", "data.path", "data.columns.prompt", "data.columns.answer"),
)


def _signature(function) -> str:
    words = []
    keyword_only = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            words.append("*")
        stars = "**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is inspect.Parameter.empty else "="
        words.append(f"{stars}{parameter.name}{default}")
    return " ".join(words)


def _fields(record) -> str:
    missing = dataclasses.MISSING
    return " ".join(
        field.name + ("" if field.default is missing and field.default_factory is missing else "=")
        for field in dataclasses.fields(record)
    )


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_as_published(name):
    assert _signature(getattr(algo, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", RECORDS)
def test_record_has_its_published_fields(name):
    assert _fields(getattr(types, name)) == RECORDS[name]


@pytest.mark.parametrize("name", RECORDS)
def test_record_is_frozen(name):
    record = getattr(types, name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(object.__new__(record), dataclasses.fields(record)[0].name, None)


def test_advantages_come_with_values_keep_state_and_returns():
    assert _fields(algo.Advantages).replace("=", "") == "values keep state returns"


@pytest.mark.parametrize("name", METHODS)
def test_published_method_exists(name):
    assert algo.method(name) == algo.METHODS[name]


@pytest.mark.parametrize("key", CONFIG_KEYS)
def test_config_key_that_scripts_rely_on_exists(key):
    kind: Any = config.Config
    for part in key.split("."):
        kind = {field.name: field.type for field in dataclasses.fields(kind)}[part]
