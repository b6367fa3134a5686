"""A run that was killed at any moment and started again equals one left alone, bit for bit."""

import multiprocessing
import warnings
from pathlib import Path

import pytest
from killed_runs import PHASES, kill_often, left_behind, run_alone


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_twenty_kills_spread_over_all_phases_change_nothing(tmp_path: Path):
    cache = tmp_path / "cache"
    run_alone(tmp_path / "alone", cache)
    kills, folders = kill_often(tmp_path, cache, kills=20, seed=0)
    assert len(kills) == 20
    assert sum(kill.crashed for kill in kills) <= 1
    # A moment is chosen while the process runs on, so some kills hit the phase after.
    assert len({kill.hit for kill in kills} & set(PHASES)) >= len(PHASES) - 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # orbax says that it finds the shardings by itself
        expected = left_behind(tmp_path / "alone")
        for folder in folders:
            assert left_behind(folder) == expected
