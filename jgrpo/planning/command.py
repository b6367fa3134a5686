"""What `jgrpo plan` prints."""

import json
import sys

from jgrpo.config import Config
from jgrpo.models.load import architecture
from jgrpo.planning import chips, search
from jgrpo.planning.look import describe, look, to_json


def show(cfg: Config, topology_name: str, *, searches: bool, as_json: bool) -> bool:
    """Prints a run on a topology, and what to change where it does not fit; True if it fits.

    Args:
      cfg: the run.
      topology_name: such as `v5e:2x4`.
      searches: propose the best mesh, microbatch and remat in place of compiling.
      as_json: print JSON.

    Raises:
      ValueError: if there is no such topology, or the run cannot be split over it.
    """
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    topology, arch = chips.topology(topology_name), architecture(cfg.model.path)
    this = look(cfg, arch, topology, compiles=not searches, say=say)
    wanted = searches or not this.fits
    proposal = (search.best if searches else search.nearest)(this, say) if wanted else None
    shown = proposal.look if searches and proposal is not None else this
    changes = {} if proposal is None else proposal.changes
    if as_json:
        told = {"changes": changes, "look": to_json(proposal.look)} if proposal else None
        print(json.dumps(to_json(shown) | {"proposal": told}, indent=1))
    else:
        print(describe(shown))
        words = " ".join(f"{key}={value}" for key, value in changes.items())
        if searches and proposal is not None:
            print(f"\nbest by estimate: {words or 'the config as it is'}")
        elif proposal is not None:
            print(f"\nIt does not fit. This does: {words}")
        elif wanted:
            print("\nNothing near it was found to fit: take more chips, or smaller batches.")
    return shown.fits and not (searches and proposal is None)
