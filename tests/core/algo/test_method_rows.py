import dataclasses

import pydantic
import pytest

from jgrpo.algo import METHODS, Method, method, needs
from jgrpo.algo.checks import refuse
from jgrpo.algo.methods import FIELDS, SLOTS, TEXTS, field_problems
from jgrpo.algo.slots import TABLES, constants


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


# What the loss of each row is made of, as objectives.md states it (section 2, "D" of each entry);
# the constants of the advantages are held by the loops of oracles_rows.py.
CLIP, ROOMY = {"clip_low": 0.2, "clip_high": 0.2}, {"clip_low": 0.2, "clip_high": 0.28}
K3 = {"penalty": "k3", "kl_in": "loss", "kl_coef": 0.04}
SM, TM, SS = ({"weights": w} for w in ("sequence_mean", "token_mean", "sequence_sum"))
GSPO = {"level": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "penalty": "none"}
DRIFT = {"constraint": "hinge_k1", "constraint_delta": 1e-4, "constraint_beta": 1e3}
LOSSES = {
    **dict.fromkeys(
        ("grpo", "mc_grpo", "tempsamp_r1", "xrpo", "stratified_grpo", "gdpo", "mo_grpo",
         "multi_objective_grpo", "weighted_grpo", "knapsack", "v0", "v0_5"), CLIP | K3 | SM,
    ),
    "ppo_clip": CLIP | TM | {"penalty": "k1", "kl_in": "token_reward"},
    "rloo": SS | {"trust": "linear", "penalty": "k1", "kl_in": "reward", "kl_coef": 0.03},
    "reinforce_pp": CLIP | TM | {"penalty": "k1", "kl_in": "token_reward"},
    "reinforce_pp_baseline": CLIP | TM | {"penalty": "k2", "kl_in": "loss"},
    "dr_grpo": CLIP | {"weights": "constant_length", "constant_length_tokens": 3000,
                       "penalty": "none"},
    "dapo": ROOMY | TM | {"dual_clip": 10.0, "penalty": "none", "sampler": "dynamic",
                          "shape": "overlong", "overlong_buffer_tokens": 4096},
    "cispo": TM | {"trust": "cispo", "clip_low": 1.0, "penalty": "none", "sampler": "dynamic"},
    "gspo": GSPO | SM,
    "gspo_token": GSPO | SM | {"level": "sequence_token"},
    "luspo": GSPO | SS | {"clip_low": 2e-3, "clip_high": 2.5e-3},
    "gmpo": SM | {"trust": "gmpo", "level": "token", "cliprange": 0.4, "penalty": "none"},
    "sapo": SM | {"trust": "sapo", "level": "token", "tau_pos": 1.0, "tau_neg": 1.05,
                  "penalty": "none"},
    "vespo": TM | {"trust": "vespo", "level": "sequence_sum", "vespo_k_pos": 2.0,
                   "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0},
    "ctpo": TM | {"trust": "ctpo", "level": "prefix_sum", "la_clip_low": 0.025,
                  "la_clip_high": 0.05, "la_clip_c": 0.05, "clip_ratio_la_power": 0.5},
    "rank_grpo": TM | K3 | {"level": "segment", "clip_low": 0.06, "clip_high": 0.08,
                            "kl_coef": 1e-3},
    "bnpo": ROOMY | SS | {"dual_clip": 10.0, "penalty": "none"},
    "ngrpo": TM | {"clip_low": 0.16, "clip_high": 0.24, "penalty": "none",
                   "sampler": "unsolved"},
    "spo": ROOMY | TM | {"dual_clip": 10.0, "penalty": "none", "rho_min": 0.875, "rho_max": 0.96,
                         "half_drift": 0.06},
    "c_grpo": CLIP | {"correction": "is_token", "is_low": 0.5, "is_high": 2.0},
    "fgrpo": CLIP | K3 | {"kl_coef": 1e-3, "dual_lr": 0.05, "dual_max": 5.0, "dual_init": 1.0,
                          "dual_thresholds": (0.95, 0.95, 0.7), "dual_min_samples": 8},
    "unlikeliness": CLIP | K3 | {"kl_coef": 0.1},
    "tempo": ROOMY | {"penalty": "none"},
    "masa": ROOMY | {"dual_clip": 10.0},
    "mu_grpo": {"veto": "suffix"},
    "disco": DRIFT | {"late": "disco", "trust": "linear", "score_tau": 10.0},
    "drpo": DRIFT | {"late": "drpo", "trust": "linear", "score_tau": 10.0, "length_lambda": 0.1,
                     "length_limit_tokens": 8192},
    "reg_grpo": {"late": "regression", "trust": "linear"},
    "grao": SM | {"trust": "linear", "source": "both", "imitation_coef": 0.5,
                  "alignment_coef": 0.6},
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_the_row_is_the_published_one(name):
    row = METHODS[name]
    assert {field: getattr(row, field) for field in LOSSES[name]} == LOSSES[name]


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
        (lambda: method("grpo", veto="is_mask"), ["'is_mask' is a choice of 'correction'"]),
        (lambda: method("xrpo", rollouts_min=1), ["rollouts_min: must be at least 2", "got 1"]),
        (lambda: method("grpo", dual_clip=1.2), ["dual_clip", "above 1 + clip_high = 1.2"]),
        (lambda: dataclasses.replace(METHODS["grpo"], clip_low=2.0), ["clip_low", "got 2.0"]),
        (lambda: Method(name="mine", base="median"), ["method 'mine'", "base", "group_mean"]),
        (lambda: method("reinforce_pp", post="none"), ["post: must be 'returns' or 'gae'"]),
        (lambda: method("grpo", combine="keep"), ["post: must be 'items' with combine 'keep'"]),
        (lambda: method("grpo", base="tracker"), ["tracker: must be 'beta'", "got 'none'"]),
        (lambda: method("disco", trust="clip"), ["trust: must be 'linear' with late 'disco'"]),
        (lambda: method("bnpo", max_value=0.0), ["max_value: must be above min_value = 0.0"]),
        (lambda: method("gdpo", reward_weights=1.0), ["reward_weights: must be a list of num"]),
        (
            lambda: refuse("gdpo", field_problems({"reward_weights": (1.0, "x")})),
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
        (METHODS["spo"], {"prompt_ids", "drift", "state", "draw"}),
        (METHODS["c_grpo"], {"columns", "behavior_logp"}),
        (METHODS["tempo"], {"mask", "tokens"}),
        (METHODS["disco"], {"late", "constraint_scale"}),
        (METHODS["grao"], {"reference", "solutions"}),
        (METHODS["v0_5"], {"allocation", "prior", "ref_logp", "prompt_ids", "state"}),
        (METHODS["knapsack"], {"allocation", "ref_logp", "prompt_ids", "state"}),
        (METHODS["xrpo"], {"allocation", "ref_logp", "mean_logp"}),
        (METHODS["mc_grpo"], {"pivot", "ref_logp"}),
        (method("dapo", veto="top_entropy", correction="is_token"),
         {"lengths", "entropy_mask", "behavior_logp"}),
        (method("gspo", bonus="entropy", entropy_coef=0.01), {"entropy"}),
        (method("dr_grpo", veto="top_entropy"), {"entropy_mask"}),
    ],
)  # fmt: skip
def test_needs_follow_from_the_slots(m, expected):
    assert needs(m) == expected
