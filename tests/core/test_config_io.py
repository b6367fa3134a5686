import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jgrpo import config_yaml
from jgrpo.algo import needs
from jgrpo.algo.methods import METHODS, method
from jgrpo.config_io import ConfigError, diff, dump, load
from jgrpo.config_methods import SUPPLIED

GOOD = """\
model: {path: tiny}
data: {task: chain}
run: {dir: runs/x, steps: 10}
"""


def write(tmp_path: Path, text: str, name: str = "my_run.yaml") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text


# Appended to GOOD, so that the first line of each text is line 4: key, then what the message says.
BAD_FILES = {
    "optim: {schedul: linear}": "optim.schedul (line 4): unknown key; did you mean 'schedule'? "
    "(known: lr, schedule, role_lr, warmup_steps",
    "optin: {lr: 1.0}": "optin (line 4): unknown key; did you mean 'optim'? (known: model, data,",
    "lr: 1.0": "lr (line 4): unknown key; did you mean 'optim.lr'? (known: model, data,",
    "optim:\n  lr: fast": "optim.lr (line 5): must be a number of at least 0, got 'fast'",
    "optim:\n  lr: '1e-6'": "optim.lr (line 5): must be a number of at least 0, got '1e-6'",
    "optim:\n  lr: true": "optim.lr (line 5): must be a number of at least 0, got true",
    "optim:\n  lr: -1": "optim.lr (line 5): must be a number of at least 0, got -1",
    "optim:\n  lr: .nan": "optim.lr (line 5): must be a finite number, got .nan",
    "optim:\n  lr: .inf": "optim.lr (line 5): must be a finite number, got .inf",
    "optim:\n  lr:": "optim.lr (line 5): must be a number of at least 0, got null",
    "optim: 3": "optim (line 4): must be a mapping with the keys lr, schedule,",
    "optim:\n  lr: [1.0]": "optim.lr (line 5): must be a number of at least 0, got [1.0]",
    "optim:\n  schedule: cosin": "optim.schedule (line 5): must be one of 'constant', 'linear', "
    "'cosine', got 'cosin'; did you mean 'cosine'?",
    "optim:\n  eps: 0": "optim.eps (line 5): must be a number above 0, got 0",
    "optim:\n  beta2: 1.5": "optim.beta2 (line 5): must be a number of at least 0 and at most 1, "
    "got 1.5",
    "optim:\n  beta2: 1": "optim.beta2 (line 5): must be below 1",
    "optim:\n  warmup_steps: 11": "optim.warmup_steps (line 5): must be at most run.steps (10), "
    "got 11",
    "optim:\n  minibatches: 5": "optim.minibatches (line 5): must divide "
    "data.num_prompts_per_step (32), got 5",
    "optim:\n  microbatch_completions: 24": "optim.microbatch_completions (line 5): must be 0 "
    "(all), a divisor of a group's completions (8), or a multiple of it that divides the 256 "
    "completions of a minibatch, got 24",
    "rollout: {group_size: 8.0}": "rollout.group_size (line 4): must be a whole number of at "
    "least 1, got 8.0",
    "rollout: {group_size: '8'}": "rollout.group_size (line 4): must be a whole number of at "
    "least 1, got '8'",
    "rollout: {group_size: 0}": "rollout.group_size (line 4): must be a whole number of at "
    "least 1, got 0",
    "rollout: {group_size: 1}": "rollout.group_size (line 4): must be at least 2 for base "
    "'group_mean', scale 'group_std', got 1",
    "rollout: {temperature: 0}": "rollout.temperature (line 4): must be above 0",
    "rollout: {top_p: 0}": "rollout.top_p (line 4): must be a number above 0 and at most 1, got 0",
    "rollout: {stop: end}": "rollout.stop (line 4): must be a list, each item text, got 'end'",
    "rollout: {stop: [1]}": "rollout.stop.0 (line 4): must be text, got 1; put it in quotes",
    "rollout: {stop: ['']}": "rollout.stop (line 4): must hold no empty string",
    "rollout:\n  top_k: 1\n  top_k: 2": "rollout.top_k (line 6): given twice; first on line 5",
    "log: {tensorboard: yes}": "log.tensorboard (line 4): must be true or false, got 'yes'",
    "log: {tensorboard: 1}": "log.tensorboard (line 4): must be true or false, got 1",
    "reward:\n  functions:\n  - nme: exact_match": "reward.functions.0.nme (line 6): unknown key; "
    "did you mean 'name'? (known: name, weight, options, per, on_failure, failure_value)",
    "reward:\n  functions:\n  - weight: 2": "reward.functions.0.name (line 6): missing; must be "
    "text",
    "reward:\n  functions:\n  - name: exact_mach": "reward.functions.0.name (line 6): must be one "
    "of ",
    "reward:\n  functions:\n  - name: my mod:f": "or package.module:function, got 'my mod:f'",
    "reward:\n  functions: [{name: exact_match}, {name: exact_match}]": "reward.functions.1.name "
    "(line 5): must be given once, got 'exact_match' again",
    "method: gsppo": "method (line 4): must be the name of a method (grpo, ",
    "method: [grpo]": "method (line 4): must be the name of a method (grpo, ",
    "method: {name: grpo, clip_lo: 1}": "method.clip_lo (line 4): unknown key; did you mean "
    "'clip_low'? (known: name, ",
    "method:\n  paper: mine": "method.paper (line 5): describes the source of the method's row and "
    "cannot be set",
    "method:\n  clip_low: small": "method.clip_low (line 5): must be a number",
    "method:\n  level: word": "method.level (line 5): unknown 'word' (known: token, ",
    "method: rloo\nrollout: {group_size: 1}": "rollout.group_size (line 5): must be at least 2 for "
    "base 'leave_one_out', got 1",
    "method: {name: grpo, shape: overlong, overlong_buffer_tokens: 256}": (
        "method.overlong_buffer_tokens (line 4): must be below rollout.max_completion_tokens (256)"
    ),
    "method: sft": "rollout.group_size: must be 1 for source 'reference'",
    "extends: 3": "extends (line 4): must be the name of a file beside this one, got 3",
    "extends: nowhere.yaml": "extends (line 4): must be another file, relative to ",
    "extends: my_run.yaml": "extends (line 4): must be another file, relative to ",
    "mesh: !!python/name:os.system {}": "line 4: not valid YAML: the tag tag:yaml.org,2002:python/"
    "name:os.system is not supported",
    "mesh:\n  fsdp: !!int x": "line 5: not valid YAML: the tag tag:yaml.org,2002:int is not",
    "eval: &here {every: 1}\nlog: *here": "line 5: not valid YAML: the alias *here is not "
    "supported",
    "eval: {every: 1": "line 5: not valid YAML: ",
    "? [a]\n: 1": "line 4: a key must be a plain word",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_file_is_refused_with_key_line_value_and_what_is_allowed(tmp_path, text):
    assert BAD_FILES[text] in refusal(write(tmp_path, GOOD + text + "\n"))


BAD_SECTIONS = {
    "": "data.task: missing; must be text",
    "model: {path: tiny}\n": "run.steps: missing; must be a whole number of at least 1",
    "model: {}\ndata: {task: chain}\n": "model.path (line 1): missing; must be text",
    "- 1\n": "must be a mapping with the keys model, data, run,",
    GOOD.replace("steps: 10", "steps: 1e3"): "run.steps (line 3): must be a whole number",
    GOOD.replace("runs/x", "''"): "run.dir (line 3): must not be empty, got ''",
    GOOD.replace("runs/x", "7"): "run.dir (line 3): must be text, got 7; put it in quotes",
    GOOD.replace("chain", "chian"): "did you mean 'chain'?",
    GOOD.replace(
        "task: chain", "task: jsonl"
    ): "data.path (line 2): must name the data for task 'jsonl'",
    GOOD.replace("chain", "chain, path: x.jsonl"): "data.path (line 2): must be empty for task "
    "'chain', which reads no file, got 'x.jsonl'",
    GOOD.replace("chain", "chain, options: {a: [1]}"): "data.options.a (line 2): must be "
    "true or false, a whole number, a number or text, got [1]",
}


@pytest.mark.parametrize("text", BAD_SECTIONS)
def test_bad_required_section_is_refused(tmp_path, text):
    assert BAD_SECTIONS[text] in refusal(write(tmp_path, text))


BAD_OVERRIDES = {
    "optim.lr": "command line: must look like key=value with a dotted key such as optim.lr, got "
    "'optim.lr'",
    "=3": "command line: must look like key=value",
    "optim..lr=3": "command line: must look like key=value",
    "optim.lr=fast": "command line: optim.lr: must be a number of at least 0, got 'fast'",
    "optim.lrr=1": "command line: optim.lrr: unknown key; did you mean 'lr'?",
    "run.dir.x=1": "command line: run.dir.x: cannot be set",
    "reward.functions.0.weight=2": "command line: reward.functions.0.weight: cannot be set",
    "rollout.stop=[a": "command line: rollout.stop: not valid YAML: ",
    "run.steps=": "command line: run.steps: must be a whole number of at least 1, got null",
    "method=grp": "command line: method: must be the name of a method (grpo, ",
    "method.clip_low=-1": "command line: method",
    "data.system_prompt=Answer #1": "command line: data.system_prompt: must be in quotes, since "
    "YAML reads 'Answer #1' as 'Answer'",
    "data.system_prompt=Say: x": "command line: data.system_prompt: must be text, got "
    "{'Say': 'x'}; put it in quotes",
    "method.summary=x": "command line: method.summary: describes the source",
}


@pytest.mark.parametrize("word", BAD_OVERRIDES)
def test_bad_override_is_refused_and_placed_on_the_command_line(tmp_path, word):
    path = write(tmp_path, GOOD + "reward: {functions: [{name: exact_match}]}\n")
    assert BAD_OVERRIDES[word] in refusal(path, (word,))


def test_all_problems_are_reported_at_once_in_one_error(tmp_path):
    path = write(tmp_path, "model: {pth: tiny}\ndata: {task: 3}\noptim: {lr: x, eps: 0}\n")
    text = refusal(path, ("run.steps=0", "log.x=1"))
    assert text.startswith(f"{path}: 8 problems\n")
    for key in ("model.pth", "model.path", "data.task", "optim.lr", "optim.eps", "run.dir"):
        assert f"\n  {key}" in text
    for key in ("run.steps", "log.x"):
        assert f"\n  command line: {key}" in text


def test_unknown_keys_and_broken_rules_are_reported_together(tmp_path):
    text = refusal(write(tmp_path, GOOD + "optim: {schedul: x}\nrollout: {group_size: 1}\n"))
    assert ": 2 problems\n" in text
    assert "\n  optim.schedul (line 4)" in text
    assert "\n  rollout.group_size (line 5)" in text


def test_missing_file_is_refused_with_the_nearest_name(tmp_path):
    write(tmp_path, GOOD)
    text = refusal(tmp_path / "my_rum.yaml")
    assert "No such file or directory; did you mean 'my_run.yaml'?" in text


def test_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8 text" in refusal(path)


def test_values_of_a_good_file_arrive(tmp_path):
    text = GOOD + (
        "optim: {lr: 1e-6, weight_decay: 1}\nrollout:\n  stop: [yes, '\\n']\n"
        "eval:\nreward:\n"
        "  functions: [{name: exact_match, weight: 2, options: {a: 1, b: x, c: true}}]\n"
    )
    cfg = load(write(tmp_path, text))
    assert cfg.optim.lr == 1e-6
    assert isinstance(cfg.optim.weight_decay, float)
    assert cfg.rollout.stop == ("yes", "\\n")
    assert cfg.eval.num_prompts == 256
    assert dict(cfg.reward.functions[0].options) == {"a": 1, "b": "x", "c": True}
    assert cfg.method == METHODS["grpo"]
    assert cfg.run.seed == 0


def test_overrides_change_the_file_whatever_their_order(tmp_path):
    path = write(tmp_path, GOOD + "method: {name: grpo, kl_coef: 0.1}\n")
    for words in (("method.clip_low=0.1", "method=gspo"), ("method=gspo", "method.clip_low=0.1")):
        cfg = load(path, (*words, "optim.lr=3e-6", "rollout.stop=['#']", "run.seed=1"))
        assert cfg.method == method("gspo", clip_low=0.1)
        assert (cfg.optim.lr, cfg.rollout.stop, cfg.run.seed) == (3e-6, ("#",), 1)


def test_later_override_of_the_same_key_wins(tmp_path):
    assert load(write(tmp_path, GOOD), ("run.seed=1", "run.seed=2")).run.seed == 2


def test_method_field_can_be_overridden_without_a_method_in_the_file(tmp_path):
    cfg = load(write(tmp_path, GOOD), ("method.kl_coef=0.5",))
    assert cfg.method == method("grpo", kl_coef=0.5)


def test_override_of_a_whole_section_replaces_it(tmp_path):
    path = write(tmp_path, GOOD + "optim: {lr: 1.0, eps: 1.0}\n")
    assert load(path, ("optim={lr: 2.0}",)).optim.eps == 1e-8


def test_extended_file_is_merged_key_by_key(tmp_path):
    write(tmp_path, GOOD + "optim: {lr: 1.0, eps: 2.0}\nrollout: {stop: [a, b]}\n", "base/b.yaml")
    child = "extends: base/b.yaml\noptim: {lr: 3.0}\nrun: {dir: runs/y}\nrollout: {stop: [c]}\n"
    cfg = load(write(tmp_path, child))
    assert (cfg.optim.lr, cfg.optim.eps) == (3.0, 2.0)
    assert (cfg.run.dir, cfg.run.steps) == ("runs/y", 10)
    assert cfg.rollout.stop == ("c",)


@pytest.mark.parametrize(
    ("base", "child", "expected"),
    [
        ("gspo", "{clip_low: 0.1}", method("gspo", clip_low=0.1)),
        ("{name: gspo, clip_low: 0.1}", "{clip_high: 0.3}", ("gspo", 0.1, 0.3)),
        ("{name: gspo, clip_low: 0.1}", "rloo", METHODS["rloo"]),
        ("{name: gspo, clip_low: 0.1}", "{name: grpo}", METHODS["grpo"]),
    ],
)
def test_method_of_the_extending_file_replaces_by_name_and_merges_without(
    tmp_path, base, child, expected
):
    write(tmp_path, GOOD + f"method: {base}\n", "b.yaml")
    got = load(write(tmp_path, f"extends: b.yaml\nmethod: {child}\n")).method
    if isinstance(expected, tuple):
        expected = method(expected[0], clip_low=expected[1], clip_high=expected[2])
    assert got == expected


def test_empty_section_of_the_extending_file_keeps_what_it_extends(tmp_path):
    write(tmp_path, GOOD + "method: gspo\noptim: {lr: 1.0}\n", "b.yaml")
    cfg = load(write(tmp_path, "extends: b.yaml\noptim:\nmethod:\n"))
    assert cfg.optim.lr == 1.0
    assert cfg.method.name == "gspo"


def test_quoted_override_may_hold_anything(tmp_path):
    cfg = load(write(tmp_path, GOOD), ("data.system_prompt='Say: #1'", "run.dir='007'"))
    assert cfg.data.system_prompt == "Say: #1"
    assert cfg.run.dir == "007"


def test_problem_in_the_extended_file_names_that_file(tmp_path):
    write(tmp_path, GOOD + "optim: {lr: x, eps: 0}\n", "b.yaml")
    text = refusal(write(tmp_path, "extends: b.yaml\noptim: {lr: 1.0}\n"))
    assert ": 1 problem\n" in text
    assert "optim.eps (b.yaml line 4): must be a number above 0, got 0" in text


def test_second_level_of_extends_is_refused(tmp_path):
    write(tmp_path, GOOD, "a.yaml")
    write(tmp_path, "extends: a.yaml\n" + GOOD, "b.yaml")
    text = refusal(write(tmp_path, "extends: b.yaml\n"))
    assert "extends (b.yaml line 1): must be absent from a file that is itself extended" in text


@pytest.mark.parametrize("name", METHODS)
def test_dumped_config_loads_back_equal_for_every_method(tmp_path, name):
    words = [f"method={name}", "run.seed=3", "optim.lr=1e-6", "data.options={a: yes, b: 1e-3}"]
    if needs(METHODS[name]) - SUPPLIED:
        pytest.skip("refused: training runs do not supply what it needs")
    if METHODS[name].source == "reference":
        words.append("rollout.group_size=1")
    if "columns" in needs(METHODS[name]):
        words.append("reward.functions=[{name: exact_match}, {name: regex_format}]")
    if METHODS[name].shape == "gated_sum":
        words[-1] = words[-1].replace("}]", "}, {name: number_match}]")
    if METHODS[name].tracker == "multipliers":
        words.append("method.dual_thresholds=[0.5]")
    if "strata" in needs(METHODS[name]):
        words.append("rollout.stratum_mark=;")
    if "rubric" in needs(METHODS[name]):
        words.append("reward.functions=[{name: judge_rubric, options: {judge: rules}}]")
    if "calls" in needs(METHODS[name]):
        words.append("calls.experts=[{name: sum_match, weight: 0.5}]")
    if "prefix_scores" in needs(METHODS[name]):
        words.append("model.preference=runs/x")
    if METHODS[name].shape == "overlong":
        words.append("rollout.max_completion_tokens=100000")
    cfg = load(write(tmp_path, GOOD), words)
    text = dump(cfg)
    assert f"name: {name}\n" in text
    assert load(write(tmp_path, text, "again.yaml")) == cfg


def test_dump_spells_every_setting(tmp_path):
    cfg = load(
        write(tmp_path, GOOD), ("method.kl_coef=0.25", "reward.functions=[{name: exact_match}]")
    )
    document = config_yaml.read(dump(cfg))
    assert document.value["method"]["kl_coef"] == 0.25
    (function,) = document.value["reward"]["functions"]
    assert function["name"] == "exact_match"
    assert function.keys() == {
        *("name", "weight", "options", "per", "on_failure", "failure_value"),
    }
    for field in dataclasses.fields(cfg):
        assert field.name in document.value


def test_diff_names_the_keys_that_differ(tmp_path):
    path = write(tmp_path, GOOD)
    base = load(path)
    assert diff(base, load(path)) == {}
    words = ("run.seed=1", "method.clip_low=0.1", "data.options={x: 1}", "rollout.stop=[a]")
    expected = ["data.options.x", "run.seed", "method.clip_low", "rollout.stop"]
    found = diff(base, load(path, words))
    assert list(found) == expected
    assert found["run.seed"] == (0, 1)
    assert found["data.options.x"] == (None, 1)
    assert diff(load(path, words), base) == {key: (b, a) for key, (a, b) in found.items()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("-1E+3", -1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0x10", 16),
        ("0o17", 15),
        ("+3", 3),
        ("yes", "yes"),
        ("off", "off"),
        ("True", True),
        ("~", None),
        ("", None),
        ("null", None),
        ("'1e-6'", "1e-6"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("v1.2.3", "v1.2.3"),
        ("-", [None]),
    ],
)
def test_scalar_is_read_by_yaml_1_2_rules(text, value):
    got = config_yaml.read(text).value
    assert got == value
    assert type(got) is type(value)


def test_infinities_and_nan_are_read_as_such():
    assert config_yaml.read("-.inf").value == -math.inf
    assert math.isnan(config_yaml.read(".nan").value)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(
        [
            "\n",
            "a\u2028b",
            "\x85",
            "yes",
            "1e-6",
            "0o7",
            "010",
            "~",
            "<<",
            "=",
            "1_000",
            "1:30",
            "&a",
            "*a",
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_written_yaml_reads_back_equal(value):
    document = config_yaml.read(config_yaml.write(value))
    assert document.faults == ()
    assert document.value == value


def test_deep_nesting_is_a_fault_and_not_a_crash():
    assert "nested too deeply" in config_yaml.read("[" * 5000).faults[0].message
