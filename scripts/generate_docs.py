"""Writes the pages of docs/ that are made from the code, or checks that they are up to date.

`docs/config.md` comes from the dataclasses of `jgrpo/config.py`, `docs/methods.md` from the table
of methods, `docs/metrics.md` from the table of metrics.
"""

import argparse
import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from jgrpo import config_schema
from jgrpo.algo.methods import METHODS, SLOTS, Method
from jgrpo.config import Config
from jgrpo.config_schema import allowed, shown

DOCS = Path(__file__).parents[1] / "docs"
_HEAD = """# Config reference

A config is a YAML file with the sections below; `python train.py CONFIG key=value ...` changes
single keys, as in `optim.lr=3e-6`. `extends: base.yaml` takes everything that the file does not say
from another one, whose path is relative to it. Unknown keys are refused. Keys whose default is
**required** must be given.
"""
_METHOD_HEAD = """
`method: NAME` takes a row of [the table of methods](methods.md); a mapping with `name` and any of
the keys below changes fields of that row, and so does `method.clip_low=0.1` on the command line.
Where a key is left out, the row decides.
"""

_LEFT_OUT = """
## Left out

jgrpo trains language models that emit tokens, left to right. These titles of its founding list are
something else, so that no row stands for them:

| title | why it is not here |
|---|---|
| G²RPO: Granular GRPO for flow models | image flow model; its actions are denoising steps |
| One Step is Enough: ride-sharing dispatch | small networks of many agents, no language model |
| Pref-GRPO | image generation; a pairwise win rate can be written as a reward |
| Real-time long-horizon air quality forecasting | a forecasting model without tokens |
| MSWEP V3 precipitation | a weather data product, nothing is trained by rewards |
| Custom rewards for job-application evaluation | an application; rewards are `reward.functions` |
| Queries, Representation & Detection | identifies models, trains none |
| BEE: metric-adapted explanations | attributions of vision models, no policy |
| Benchmarking Neural Network Training Algorithms | compares optimizers |
| DenseGRPO | image flow model |
| Graph-GRPO | a policy over the edges of a communication graph |
| Co-GRPO | masked diffusion: tokens are unmasked in an order that is learned too |
| PANGAEA: geospatial foundation models | a benchmark of encoders |

Others bring no rule of their own and are a configuration of what is here: GRIT (grpo with a reward
for format and grounding), GroupRank (a ranking metric as the reward), multi-objective alignment
(`multi_objective_grpo`).
"""


def field_docs(cls: type) -> dict[str, str]:
    """Returns the string under each field of a dataclass; fields without one are absent."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[node.target.id] = inspect.cleandoc(str(following.value.value)).replace("\n", " ")
    return docs


def config_page() -> str:
    """Returns the reference of every setting: one table a section."""
    parts = [_HEAD]
    for name, annotation in config_schema.fields(Config).items():
        cls = config_schema.section(annotation)
        assert cls is not None
        parts.append(f"\n## {name}\n")
        parts.append(_METHOD_HEAD if name == "method" else f"\n{_summary(cls)}\n")
        parts.append(_table(cls, name))
    return "".join(parts)


def _summary(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").replace("\n", " ")


def _table(cls: type, prefix: str) -> str:
    docs = field_docs(cls)
    defaults = {field.name: _default(field) for field in dataclasses.fields(cls)}
    lines = ["\n| key | allowed | default | meaning |\n|---|---|---|---|\n"]
    nested = ""
    for name, annotation in config_schema.fields(cls).items():
        key = f"{prefix}.{name}"
        inner = config_schema.section(annotation)
        inner_item = config_schema.section(config_schema.item(annotation))
        if inner is not None:
            nested += _table(inner, key)
            continue
        if inner_item is not None:
            nested += _table(inner_item, f"{key}[]")
        kind = "a list of mappings" if inner_item is not None else allowed(annotation)
        default = defaults[name]
        if cls is Method:
            words = (*METHODS,) if name == "name" else SLOTS.get(name)
            kind = f"one of {', '.join(repr(word) for word in words)}" if words else kind
            default = "`'grpo'`" if name == "name" else "the row's"
        cells = (f"`{key}`", kind, default, docs[name])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(lines) + nested


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "**required**"
    if isinstance(value, Mapping) or value == ():
        return "empty"
    return f"`{shown(value)}`"


def _methods_page() -> str:
    from jgrpo.algo.describe import methods_page

    return methods_page() + _LEFT_OUT


def _metrics_page() -> str:
    from jgrpo.metrics import metrics_page

    return metrics_page()


PAGES: Mapping[str, Callable[[], str]] = {
    "config.md": config_page,
    "methods.md": _methods_page,
    "metrics.md": _metrics_page,
}


def main() -> int:
    """Writes the pages; with --check, writes nothing and returns 1 if one is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say which pages are stale")
    check = parser.parse_args().check
    stale = 0
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"docs/{name} is stale; run: python scripts/generate_docs.py", file=sys.stderr)
        else:
            DOCS.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
