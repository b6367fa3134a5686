"""What several processes must have in common before they train together, and cannot do yet."""

import hashlib
from collections.abc import Iterator

import jax

from jgrpo import algo, config_io
from jgrpo.config import Config
from jgrpo.parallel import hosts

_NOT_YET = {
    "preference": "a preference model",
    "prefix_scores": "a preference model",
    "drift": "completions remembered from earlier steps",
    "replay": "completions that come back",
    "skills": "a library of skills",
    "experts": "solutions that wait for their turn",
}
"""What a method may need (`algo.needs`) that has never been run in several processes."""


def check_alike(cfg: Config) -> None:
    """Refuses what several processes cannot train; returns at once where one is alone.

    Raises:
      ValueError: in all processes, if one was started with another config or has another number
        of devices, or if the config needs what has never been run so.
    """
    if not hosts.several():
        return
    ours = hashlib.sha256(config_io.dump(cfg).encode()).hexdigest()[:12]
    said = hosts.exchange(f"config {ours}, {jax.local_device_count()} device(s)")
    if different := [i for i, what in enumerate(said) if what != said[0]]:
        raise ValueError(
            f"all processes must be started with the same config and as many devices: process 0 "
            f"has {said[0]}, process {different[0]} has {said[different[0]]}"
        )
    if refused := list(_refused(cfg)):
        raise ValueError(
            f"{hosts.count()} processes cannot train with {'; '.join(refused)}. Use one process "
            "(one host), or leave it out."
        )


def _refused(cfg: Config) -> Iterator[str]:
    if cfg.rollout.lag:
        yield "rollout.lag 1: two threads would start programs in an order of their own"
    needed = sorted(algo.needs(cfg.method) & _NOT_YET.keys())
    for what in dict.fromkeys(_NOT_YET[name] for name in needed):
        yield f"method {cfg.method.name!r}: {what} has not been tried there"
    if cfg.plan.roles:
        yield f"method {cfg.method.name!r}: roles beside the policy have not been tried there"
