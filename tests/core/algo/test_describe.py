import json
import re

import pytest
from stateful_methods import STATEFUL

from jgrpo.algo import METHODS
from jgrpo.algo.describe import NEEDS, kept, method_page, methods_page, methods_table
from jgrpo.algo.methods import SLOTS
from jgrpo.algo.slots import TABLES
from jgrpo.cli import main

# The rows of objectives.md, section 2, and supervised learning, which is ours.
FAMILY = """
grpo ppo_clip rloo reinforce_pp reinforce_pp_baseline dr_grpo dapo cispo gspo gspo_token luspo gmpo
sapo vespo ctpo rank_grpo bnpo mc_grpo ngrpo spo stratified_grpo gdpo mo_grpo multi_objective_grpo
c_grpo fgrpo unlikeliness tempsamp_r1 weighted_grpo xrpo tempo masa knapsack v0 v0_5 mu_grpo disco
drpo reg_grpo grao sft g2rpo_a train_long_think_short grpo_lambda posterior_grpo format_length
guide_grpo scaf_grpo cgi expo igrpo s_grpo ws_preference grpo_care ws_grpo
pairing vspo microcoder_grpo autorule ps_grpo info_consistency cobalt grpo_smu
prioritized_replay rgr_grpo thinktuning hill arise m_grpo
"""


# Known from notes, reviews or an abstract alone: objectives.md, section H, and later rows.
WEAK = """
v0 v0_5 knapsack stratified_grpo xrpo tempsamp_r1 reg_grpo mo_grpo weighted_grpo mu_grpo
multi_objective_grpo grpo_lambda posterior_grpo
expo s_grpo cgi ws_preference ws_grpo pairing vspo ps_grpo info_consistency grpo_smu rgr_grpo
thinktuning
"""


def test_weak_evidence_says_so_and_nothing_else_does():
    weak = {name for name, m in METHODS.items() if m.evidence.startswith("weak: ")}
    assert weak == set(WEAK.split())


def test_table_is_json_with_a_record_for_every_row():
    records = json.loads(json.dumps(methods_table()))
    assert [record["name"] for record in records] == list(METHODS)
    for record in records:
        assert all(record[text] for text in ("paper", "evidence", "departs", "summary"))
        assert set(record["slots"]) == set(SLOTS)


def test_the_methods_that_keep_a_state_are_those_whose_runs_are_resumed():
    assert {name for name, m in METHODS.items() if kept(m)} == set(STATEFUL)


def test_command_lists_the_family_and_nothing_else_with_its_evidence(capsys):
    assert main(["methods", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    names = [record["name"] for record in records]
    assert sorted(names) == sorted(FAMILY.split())
    for record in records:
        assert all(record[text].strip() for text in ("paper", "evidence", "departs"))


def test_command_prints_a_table_of_all_methods_and_a_page_of_one(capsys):
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    for header in ("method", "differs from grpo by", "paper", "departs", "evidence"):
        assert header in table
    first = {line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")}
    assert first - {""} == set(METHODS)
    assert "clip_low=0.0003" in table
    assert main(["methods", "gspo"]) == 0
    assert capsys.readouterr().out == method_page("gspo") + "\n"


def test_page_of_the_documentation_is_the_one_made_from_the_rows(root):
    page, _, left_out = (root / "docs/methods.md").read_text("utf-8").partition("\n## Left out\n")
    assert page == methods_page()
    assert "flow model" in left_out


@pytest.mark.parametrize("name", METHODS)
def test_page_names_the_constants_and_needs_of_its_record(name):
    page = method_page(name)
    record = next(record for record in methods_table() if record["name"] == name)
    for constant, value in record["constants"].items():
        assert f"`{constant}={value}`" in page
    for need in record["needs"]:
        assert NEEDS[need] in page
    assert TABLES["trust"][METHODS[name].trust].formula in page


def test_page_follows_the_composition():
    """GRPO penalises in the loss, RLOO in the reward, DAPO not at all."""
    assert "0.04 kappa_it)" in method_page("grpo")
    assert "R'_i less 0.03 sum_t kappa_it" in method_page("rloo")
    assert "kappa" not in method_page("dapo")


def test_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'dapo'"):
        method_page("dap")


def test_whole_page_holds_every_method_and_every_choice():
    page = methods_page()
    for name in METHODS:
        assert method_page(name) in page
    for choices in SLOTS.values():
        for choice in choices:
            assert f"| `{choice}` |" in page


def test_metrics_to_watch_have_the_form_of_metric_names():
    watched = {w for table in TABLES.values() for choice in table.values() for w in choice.watch}
    assert all(re.fullmatch(r"[a-z]+/[a-z_]+", name) for name in watched)
