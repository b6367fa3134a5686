import json
import re

import pytest

from jgrpo.algo import METHODS
from jgrpo.algo.describe import NEEDS, method_page, methods_page, methods_table
from jgrpo.algo.methods import SLOTS
from jgrpo.algo.slots import TABLES


def test_table_is_json_with_a_record_for_every_row():
    records = json.loads(json.dumps(methods_table()))
    assert [record["name"] for record in records] == list(METHODS)
    for record in records:
        assert all(record[text] for text in ("paper", "evidence", "departs", "summary"))
        assert set(record["slots"]) == set(SLOTS)


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
