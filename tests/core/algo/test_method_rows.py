import dataclasses

import pydantic
import pytest

from jgrpo.algo import METHODS, Method, method, needs
from jgrpo.algo.methods import FIELDS, SLOTS, TEXTS, field_problems
from jgrpo.algo.row import refuse_problems
from jgrpo.algo.slots import TABLES, constants

FAMILY = """
grpo ppo_clip rloo reinforce_pp reinforce_pp_baseline dr_grpo dapo cispo gspo gspo_token luspo gmpo
sapo vespo ctpo rank_grpo bnpo mc_grpo ngrpo spo stratified_grpo gdpo mo_grpo multi_objective_grpo
c_grpo fgrpo unlikeliness tempsamp_r1 weighted_grpo xrpo tempo masa knapsack v0 v0_5 mu_grpo disco
drpo reg_grpo grao sft
"""


@pytest.mark.parametrize("slot", TABLES)
def test_slot_names_are_the_keys_of_the_slot_table(slot):
    assert SLOTS[slot] == tuple(TABLES[slot])


def test_every_slot_is_a_field_and_every_constant_is_read_by_some_choice():
    assert set(SLOTS) <= set(FIELDS)
    read = {c for table in TABLES.values() for choice in table.values() for c in choice.constants}
    assert read == set(FIELDS) - set(SLOTS) - set(TEXTS)


@pytest.mark.parametrize("name", METHODS)
def test_row_stands_under_its_own_name_with_all_its_texts(name):
    row = METHODS[name]
    assert row.name == name
    assert all(getattr(row, text) for text in TEXTS)
    assert method(name) == row
    assert hash(method(name)) == hash(row)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", {"scale_eps": 1e-6, "scale_ddof": 1, "clip_low": 0.2, "clip_high": 0.2,
                  "dual_clip": 0.0, "kl_coef": 0.04}),
        ("dr_grpo", {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 0.0,
                     "constant_length_tokens": 3000}),
        ("dapo", {"dynamic_max_rounds": 10, "overlong_buffer_tokens": 4096,
                  "overlong_penalty": 1.0, "scale_eps": 1e-6, "scale_ddof": 1, "clip_low": 0.2,
                  "clip_high": 0.28, "dual_clip": 10.0}),
        ("gspo", {"scale_eps": 1e-6, "scale_ddof": 1, "clip_low": 3e-4, "clip_high": 4e-4,
                  "dual_clip": 0.0}),
        ("rloo", {"kl_coef": 0.03}),
        ("sft", {}),
    ],
)  # fmt: skip
def test_row_has_the_published_constants(name, expected):
    assert constants(METHODS[name]) == expected


def test_override_changes_the_field_and_is_recorded_as_a_departure():
    m = method("gspo", clip_low=0.1, trust="clip")
    assert m.clip_low == 0.1
    assert "Overridden: clip_low=0.1 (row: 0.0003)" in m.departs
    assert "trust" not in m.departs


def test_override_equal_to_the_row_gives_the_row():
    assert method("gspo", clip_low=3e-4) == METHODS["gspo"]


def test_integers_become_floats_where_the_field_is_a_number():
    m = method("grpo", kl_coef=0, clip_high=1)
    assert isinstance(m.kl_coef, float)
    assert isinstance(m.clip_high, float)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: method("gsop"), ["gsop", "did you mean 'gspo'", "known: grpo"]),
        (lambda: method("grpo", clip_lw=0.1), ["clip_lw", "did you mean 'clip_low'"]),
        (lambda: method("grpo", summary="x"), ["unknown field 'summary'"]),
        (lambda: method("grpo", trust="clp"), ["trust", "'clp'", "did you mean 'clip'", "cispo"]),
        (lambda: method("grpo", trust=3), ["trust: must be text, got 3"]),
        (lambda: method("grpo", clip_low=1.5), ["clip_low: must be at most 1.0, got 1.5"]),
        (lambda: method("grpo", kl_coef=-1), ["kl_coef: must be at least 0.0, got -1"]),
        (lambda: method("grpo", kl_coef=float("nan")), ["kl_coef: must be finite, got nan"]),
        (lambda: method("grpo", kl_coef=True), ["kl_coef: must be a number, got True"]),
        (lambda: method("grpo", scale_ddof=1.0), ["scale_ddof: must be an integer, got 1.0"]),
        (lambda: method("grpo", scale_ddof=2), ["scale_ddof: must be at most 1, got 2"]),
        (lambda: method("dapo", dynamic_max_rounds=0), ["dynamic_max_rounds", "at least 1"]),
        (lambda: method("grpo", weights="constant_length"), ["constant_length_tokens", "got 0"]),
        (lambda: method("grpo", shape="overlong"), ["overlong_buffer_tokens", "got 0"]),
        (lambda: method("grpo", kl_in="reward"), ["penalty: must be 'k1' or 'none'", "'k3'"]),
        (lambda: method("grpo", dual_clip=1.2), ["dual_clip", "above 1 + clip_high = 1.2"]),
        (lambda: dataclasses.replace(METHODS["grpo"], clip_low=2.0), ["clip_low", "got 2.0"]),
        (lambda: Method(name="mine", base="median"), ["method 'mine'", "base", "group_mean"]),
        (lambda: method("reinforce_pp", post="none"), ["post: must be 'returns' or 'gae'"]),
        (lambda: method("reinforce_pp", penalty="k3"), ["penalty: must be 'k1' or 'none'"]),
        (lambda: method("grpo", combine="keep"), ["post: must be 'items' with combine 'keep'"]),
        (lambda: method("grpo", base="tracker"), ["tracker: must be 'beta'", "got 'none'"]),
        (lambda: method("disco", trust="clip"), ["trust: must be 'linear' with late 'disco'"]),
        (lambda: method("bnpo", max_value=0.0), ["max_value: must be above min_value = 0.0"]),
        (lambda: method("gdpo", reward_weights=1.0), ["reward_weights: must be a list of num"]),
        (
            lambda: refuse_problems("gdpo", {"reward_weights": (1.0, "x")}),
            ["each item must be a number"],
        ),
    ],
)  # fmt: skip
def test_invalid_method_is_refused_naming_field_value_and_what_is_allowed(call, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        call()
    for word in words:
        assert word in str(caught.value)


def test_a_list_of_numbers_may_come_from_yaml_and_is_kept_as_a_tuple():
    m = method("gdpo", reward_weights=[1.0, 0.5])
    assert m.reward_weights == (1.0, 0.5)
    assert hash(m)
    assert method("fgrpo", dual_thresholds=[0.95, 0.95, 0.7]) == METHODS["fgrpo"]


def test_every_name_of_the_family_is_a_row():
    assert set(METHODS) == set(FAMILY.split())


def test_all_faults_are_reported_at_once():
    problems = field_problems({"trust": "clp", "kl_coef": -1.0, "clip": 0.2, "base": "none"})
    assert set(problems) == {"trust", "kl_coef", "clip"}


@pytest.mark.parametrize("name", METHODS)
def test_row_survives_strict_json_validation(name):
    adapter = pydantic.TypeAdapter(Method)
    assert adapter.validate_json(adapter.dump_json(METHODS[name]), strict=True) == METHODS[name]


def test_json_with_a_wrong_slot_or_range_is_refused():
    adapter = pydantic.TypeAdapter(Method)
    with pytest.raises(pydantic.ValidationError, match="did you mean 'clip'"):
        adapter.validate_json('{"name": "mine", "trust": "clp"}', strict=True)
    with pytest.raises(pydantic.ValidationError, match="clip_low"):
        adapter.validate_json('{"name": "mine", "clip_low": 3}', strict=True)


@pytest.mark.parametrize(
    ("m", "expected"),
    [
        (METHODS["grpo"], {"ref_logp"}),
        (method("grpo", kl_coef=0.0), set()),
        (method("grpo", penalty="none"), set()),
        (METHODS["dr_grpo"], set()),
        (METHODS["dapo"], {"lengths"}),
        (METHODS["rloo"], {"ref_logp", "sequence_kl"}),
        (method("rloo", kl_coef=0.0), set()),
        (METHODS["sft"], {"solutions"}),
        (METHODS["ppo_clip"], {"mask", "values", "ref_logp", "token_kl"}),
        (METHODS["rank_grpo"], {"columns", "mask", "segments", "ref_logp"}),
        (METHODS["spo"], {"prompt_ids", "drift", "state"}),
        (METHODS["c_grpo"], {"columns", "behavior_logp"}),
        (METHODS["tempo"], {"mask", "tokens"}),
        (METHODS["disco"], {"late", "constraint_scale"}),
        (METHODS["grao"], {"reference", "solutions"}),
        (METHODS["v0_5"], {"allocation", "prior", "ref_logp"}),
        (method("gspo", bonus="entropy", entropy_coef=0.01), {"entropy"}),
    ],
)
def test_needs_follow_from_the_slots(m, expected):
    assert needs(m) == expected
