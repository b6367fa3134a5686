"""A run that was killed at any moment and started again equals one left alone, bit for bit."""

import multiprocessing
import warnings
from pathlib import Path

import pytest
from by_hand import by_hand
from killed_runs import PHASES, kill_often, left_behind, run_alone


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.parametrize("kills", [len(PHASES), by_hand(20)])
def test_kills_spread_over_all_phases_change_nothing(tmp_path: Path, kills: int):
    cache = tmp_path / "cache"
    run_alone(tmp_path / "alone", cache)
    done, folders = kill_often(tmp_path, cache, kills, seed=0)
    assert len(done) == kills
    assert sum(kill.crashed for kill in done) <= 1
    # A moment is chosen while the process runs on, so some kills hit the phase after.
    assert len({kill.hit for kill in done} & set(PHASES)) >= len(PHASES) - 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # orbax says that it finds the shardings by itself
        expected = left_behind(tmp_path / "alone")
        for folder in folders:
            assert left_behind(folder) == expected
