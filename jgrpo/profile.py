"""`run.profile`: a trace of some steps, and one page that says where their time went."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
from jax.profiler import ProfileData

from jgrpo.files import write_atomically

_SPEC = re.compile(r"steps:(\d+)(?:-(\d+))?")
_LONGEST = 20
# Events that contain others, or wait for them.
_NOT_WORK = re.compile(r"ThunkExecutor|while|conditional|call|Wait|end:|Rendezvous|.*Await")
_STAGES = {
    "prompts read (prefill)": "time/prefill_s",
    "tokens drawn (decode)": "time/decode_s",
    "rest of sampling (host)": None,
    "rewards, after the sampling": "time/reward_s",
    "learner": "time/learner_s",
    "rest of the step (host)": "time/host_s",
}


def traced_steps(spec: str) -> range:
    """The steps that `steps:5-7` or `steps:5` names, as numbered in metrics.jsonl; "" names none.

    Raises:
      ValueError: if it says anything else.
    """
    if not spec:
        return range(0)
    found = _SPEC.fullmatch(spec)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first:
        raise ValueError(f"must look like 'steps:5-7' or 'steps:5', got {spec!r}")
    return range(first, last + 1)


class Profile:
    """Traces the steps that it is given to see, if they are asked for, and then writes its page."""

    def __init__(self, folder: Path, spec: str) -> None:
        """Nothing is traced yet.

        Args:
          folder: the run folder; `profile/` in it gets the trace and `summary.md`.
          spec: value of `run.profile`.
        """
        self._folder = folder / "profile"
        self._steps = traced_steps(spec)
        self._seen: list[dict[str, float]] = []
        self._tracing = False

    def begin(self, step: int) -> None:
        """Starts the trace if this is the first step of it."""
        if step in self._steps and not self._tracing:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def end(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Notes what a step has shown; after the last one writes the page and says where it is.

        Args:
          step: number of the step.
          metrics: its metrics.
        """
        if not self._tracing:
            return []
        self._seen.append({name: float(value) for name, value in metrics.items()})
        if step < self._steps[-1]:
            return []
        self.close()
        page = self._folder / "summary.md"
        write_atomically(page, summary(self._seen, list(_operations(self._folder))))
        return [f"profile of {len(self._seen)} steps: {page}"]

    def close(self) -> None:
        """Ends a trace that is still open."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


def summary(steps: Sequence[Mapping[str, float]], operations: Sequence[tuple[str, float]]) -> str:
    """The page as Markdown.

    Args:
      steps: metrics of each traced step.
      operations: name and milliseconds of each traced event of the devices.
    """
    mean = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    seconds = {name: mean[key] for name, key in _STAGES.items() if key is not None}
    of_sampling = mean["time/prefill_s"] + mean["time/decode_s"]
    seconds["rest of sampling (host)"] = mean["time/rollout_s"] - of_sampling
    drawn, slots = mean["tokens/completion"], 1.0 - mean["sampling/wasted_fraction"]
    lines = [
        f"# {len(steps)} steps",
        "",
        f"Means a step: {mean['time/step_s']:.3f} s, of it {mean['time/compile_s']:.3f} s in the "
        "compiler.",
        "",
        "| stage | s | share |",
        "|---|---|---|",
        *(f"| {s} | {seconds[s]:.3f} | {seconds[s] / mean['time/step_s']:.1%} |" for s in _STAGES),
        "",
        f"{mean['tokens/prompt']:,.0f} prompt tokens (counted once a completion), {drawn:,.0f} "
        f"completion tokens drawn, {mean['throughput/rollout_tok_s']:,.0f} a second. "
        f"{slots:.1%} of what the slots could have drawn was kept. "
        f"{mean['throughput/learner_tok_s']:,.0f} tokens a second through the learner.",
        "",
        f"## The {_LONGEST} operations that took longest",
        "",
        "| operation | times | ms a step | share |",
        "|---|---|---|---|",
    ]
    times: dict[str, list[float]] = defaultdict(list)
    for name, ms in operations:
        times[name].append(ms)
    whole = sum(ms for _, ms in operations) or 1.0
    for name, of_name in sorted(times.items(), key=lambda item: -sum(item[1]))[:_LONGEST]:
        ms = sum(of_name)
        cells = f"{len(of_name) // len(steps)} | {ms / len(steps):.1f} | {ms / whole:.1%}"
        lines.append(f"| `{name}` | {cells} |")
    return "\n".join(lines) + "\n"


def _operations(folder: Path) -> Iterator[tuple[str, float]]:
    """Name and milliseconds of every operation that a device (or XLA on the host) has run."""
    newest = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)[-1:]
    for path in newest:
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                if "XLA Ops" in line.name or "XLAEigen" in line.name or "tf_" in line.name:
                    for event in line.events:
                        if not _NOT_WORK.match(event.name):
                            yield event.name, event.duration_ns / 1e6
