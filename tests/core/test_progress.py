import io

import numpy as np
from rich.console import Console

from jgrpo.evaluate import evaluation_report
from jgrpo.progress import Progress, before_after_table

METRICS_OF_A_STEP = {
    "reward/mean": 0.53125,
    "completion/length_mean": 23.06,
    "throughput/step_tok_s": 12345.6,
    "time/step_s": 2.0,
    "kl/ref": 0.1,
}


def _shown(*, total: int, start: int = 0, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
    with Progress(total, start, console) as progress:
        for step in range(start, total):
            progress.update(step, METRICS_OF_A_STEP)
    return out.getvalue()


def test_log_has_about_twenty_lines_and_both_ends():
    lines = _shown(total=200).splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("step 1/200 ")
    assert lines[-1].startswith("step 200/200 ")


def test_short_run_logs_every_step():
    assert len(_shown(total=3).splitlines()) == 3


def test_resumed_run_logs_its_first_step():
    assert _shown(total=200, start=55).splitlines()[0].startswith("step 56/200 ")


def test_log_line_shows_labelled_metrics_and_time_left():
    """5 steps of 2 s: after the first, 8 s are left."""
    line = _shown(total=5).splitlines()[0]
    assert line == "step 1/5  reward 0.531  length 23.1  tok/s 12,346  ETA 0:08"


def test_slow_first_step_does_not_spoil_the_time_left():
    out = io.StringIO()
    with Progress(7200, 0, Console(file=out, width=120)) as progress:
        for step, seconds in enumerate([90.0, 1.0, 1.0]):
            progress.update(step, {"time/step_s": seconds})
        progress._every = 1  # the next step is shown, whatever the interval
        progress.update(3, {"time/step_s": 1.0})
    assert out.getvalue().splitlines()[-1] == "step 4/7200  ETA 1:59:56"


def test_terminal_shows_one_line_drawn_again():
    text = _shown(total=50, terminal=True)
    last = [line for line in text.replace("\r", "\n").splitlines() if "step" in line][-1]
    assert "step 50/50" in last
    assert "reward 0.531" in last
    assert text.count("\n") == 1


def test_said_line_stays_as_written():
    out = io.StringIO()
    with Progress(5, 0, Console(file=out, width=20)) as progress:
        progress.say("resumed from step 3 of runs/[x]/a")
    assert out.getvalue() == "resumed from step 3 of runs/[x]/a\n"


def test_table_shows_accuracy_interval_and_change():
    def report(num_correct: int):
        return evaluation_report(
            greedy_correct=np.arange(10) < num_correct,
            greedy_length=np.full(10, 4 + num_correct),
            greedy_finished=np.ones(10, bool),
            sampled_correct=np.arange(10)[:, None] < num_correct + np.zeros((10, 2), int),
            seed=0,
        )

    out = io.StringIO()
    Console(file=out, width=100).print(before_after_table(report(3), report(9)))
    rows = {line[1:24].strip(): line for line in out.getvalue().splitlines()}
    text = out.getvalue()
    assert "10 held-out prompts" in text
    greedy = next(line for line in rows.values() if "greedy accuracy" in line)
    assert "30.0 % (" in greedy
    assert "90.0 % (" in greedy
    assert "+60.0 points" in greedy
    assert "pass@2" in text
    assert "maj@" not in text
    assert "+6.0 tokens" in text
