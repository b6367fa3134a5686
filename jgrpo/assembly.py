"""Everything fixed about a run, put together once from its config."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree
from transformers import PreTrainedTokenizerBase

from jgrpo import algo
from jgrpo.adapting import adapted, base_dtype, trained_axes
from jgrpo.ahead import SAMPLER
from jgrpo.asking import Asking
from jgrpo.buckets import bucket
from jgrpo.choosing import chosen_skills
from jgrpo.collect import Collector
from jgrpo.config import Config
from jgrpo.data.tasks import load_task
from jgrpo.distilling import Distilling
from jgrpo.heldout import Evaluator
from jgrpo.keys import named_key, root_key
from jgrpo.learner.optim import make_optimizer
from jgrpo.learner.preference import PREFERENCE, fresh_preference
from jgrpo.learner.routing import RouterLoss
from jgrpo.learner.step import Learner
from jgrpo.memory import nothing
from jgrpo.models import decoder
from jgrpo.models.architecture import Architecture
from jgrpo.models.attention import Attention, Kernel, choose
from jgrpo.models.decoder import GraphDef
from jgrpo.models.load import LoadedModel, architecture, load
from jgrpo.parallel.hosts import place
from jgrpo.parallel.mesh import make_mesh
from jgrpo.parallel.rules import param_shardings, replicated
from jgrpo.predicting import regrouped
from jgrpo.preferring import load_preference, report, save_preference, stops_of, whole_scores
from jgrpo.recalling import recalled
from jgrpo.relying import reliance
from jgrpo.rewards.score import Reward, build, close
from jgrpo.roles import ROLES, fresh_roles, role_learners
from jgrpo.rollout.engine import Engine
from jgrpo.strategy import control, experts, guidance, replay, skills
from jgrpo.types import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Everything fixed about a run.

    Attributes:
      cfg: the config.
      mesh: the devices.
      model: architecture, tokenizer and the initial values of what is trained.
      collector: prompts, sampler and rewards.
      learner: the update.
      roles: the updates of policies beside the policy, by the role of each.
      evaluator: the held-out evaluation.
      root: the key from which all randomness is derived.
      learners: those made for other sampling temperatures.
    """

    cfg: Config
    mesh: Mesh
    model: LoadedModel
    collector: Collector
    learner: Learner
    roles: Mapping[str, Learner]
    evaluator: Evaluator
    root: Key[Array, ""]
    learners: dict[float, Learner] = dataclasses.field(default_factory=dict)

    def at(self, strategy: PyTree) -> "Run":
        """The run with the learner of a step, at whose sampling temperature log-probs are compared.

        Args:
          strategy: the states of the method's slots.
        """
        temperature = control.of_step(self.cfg, strategy).rollout.temperature
        if temperature == self.learner.temperature:
            return self
        if temperature not in self.learners:
            learner = dataclasses.replace(self.learner, temperature=temperature)
            self.learners[temperature] = learner
        return dataclasses.replace(self, learner=self.learners[temperature])

    def checked(self, check: Callable[[], None]) -> "Run":
        """The run that calls this before each part of its sampling; it may raise to give up."""
        collector = dataclasses.replace(self.collector, check=check)
        evaluator = dataclasses.replace(self.evaluator, check=check)
        return dataclasses.replace(self, collector=collector, evaluator=evaluator)

    def initial_state(self) -> TrainState:
        """The initial weights on the mesh, with fresh states of optimizer and method."""
        method, state = self.cfg.method, self.learner.init(self.model.params)
        needed, num_prompts = algo.needs(method), len(self.collector.task.train)
        strategy, aux = dict[str, PyTree](), dict[str, PyTree]()
        if "state" in needed:
            strategy["tracker"] = algo.init_state(method, num_prompts=num_prompts)
        if "guidance" in needed:
            strategy["guidance"] = guidance.fresh(method)
        longest = bucket(self.cfg.rollout.max_completion_tokens)
        if "control" in needed:
            strategy["control"] = control.fresh()
        if "replay" in needed:
            strategy["replay"] = replay.fresh(method, num_prompts, longest)
        if "skills" in needed:
            strategy["skills"] = skills.fresh(method, self.cfg.data.skills)
        if "experts" in needed:
            strategy["experts"] = experts.fresh(self.cfg.data.num_prompts_per_step, longest)
        if "drift" in needed:
            aux["previous"] = nothing(num_prompts, longest)
        width = self.model.arch.d_model
        if "preference" in needed:
            aux[PREFERENCE] = fresh_preference(width, named_key(self.root, "preference"))
        elif "prefix_scores" in needed:
            aux[PREFERENCE] = load_preference(self.cfg.model.preference, width)
        strategy, aux = place((strategy, aux), replicated(self.mesh))
        if self.cfg.rollout.lag:
            aux[SAMPLER] = jax.tree.map(jnp.copy, state.params)
        if self.roles:
            aux[ROLES] = fresh_roles(self.roles, self.model.params)
        return dataclasses.replace(state, strategy=strategy, aux=state.aux | aux)

    def report_beside(self, state: TrainState, folder: Path, name: str) -> dict[str, Any]:
        """What has been trained in place of the policy: its file, and how it does on held-out data.

        Args:
          state: the state.
          folder: the run folder.
          name: of the evaluation beside it; the report is named after it.
        """
        if "preference" not in algo.needs(self.cfg.method):
            return {}
        save_preference(folder, state)
        cfg, heldout = self.cfg, self.collector.task.heldout
        at_once, count = cfg.data.num_prompts_per_step, min(cfg.eval.num_prompts, len(heldout))
        key, seen = named_key(self.root, int(state.step), "preference"), []
        for first in range(0, max(count - at_once, 0) + 1, at_once):
            examples = [heldout[i] for i in range(first, min(first + at_once, len(heldout)))]
            size, temperature = cfg.rollout.group_size, cfg.rollout.temperature
            rollouts, _, correct = self.evaluator.judged(
                state.params, examples, first, key, size, temperature
            )
            seen.append((whole_scores(self.learner, state, rollouts), correct))
        scores, correct = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        return {name.replace("eval", "preference"): report(scores, correct)}

    def close(self) -> None:
        """Ends the threads and processes that work for it."""
        self.collector.asking.close()
        close((*self.collector.rewards, *self.collector.experts))


def attention_kernel(cfg: Config, platform: str = "") -> Kernel:
    """The kernel that `model.attention` means for this model.

    Args:
      cfg: the config.
      platform: of the devices; empty: of those present.

    Raises:
      ValueError: if it names one that cannot run there.
    """
    return choose(
        cfg.model.attention,
        platform=platform or jax.default_backend(),
        dtype=cfg.model.dtype,
        head_width=architecture(cfg.model.path).head_width,
    )


def attention_on(cfg: Config, mesh: Mesh) -> Attention:
    """What computes the attention of this model on a mesh.

    Raises:
      ValueError: as `attention_kernel` does.
    """
    return Attention(kernel=attention_kernel(cfg, mesh.devices.flat[0].platform), mesh=mesh)


def assemble(cfg: Config) -> Run:
    """Loads model and task and puts the stages together; nothing is compiled or written yet.

    Raises:
      ValueError: if the mesh, the model, the task or a reward does not fit the config.
    """
    mesh = make_mesh(cfg.mesh)
    model = load(
        cfg.model.path,
        init=cfg.model.init,
        seed=cfg.run.seed,
        dtype=cfg.model.dtype,
        param_dtype=base_dtype(cfg),
        attention=attention_on(cfg, mesh),
    )
    model, frozen = adapted(cfg, model, mesh)
    task = load_task(cfg.data)
    rewards = build(cfg.reward.functions, task, cfg.reward)
    experts = build(cfg.calls.experts, task, cfg.reward) if cfg.calls.experts else ()
    root = root_key(cfg.run.seed)
    engine = make_engine(cfg, mesh, model.arch, model.eos_ids, model.tokenizer, frozen)
    shapes = jax.eval_shape(lambda: model.params)
    learner = make_learner(cfg, mesh, model.graphdef, model.arch, shapes, frozen)
    # What is evaluated are the weights that are trained, not their rounding.
    exact = dataclasses.replace(engine, weights="model", kv="model", routes=False)
    return Run(
        cfg=cfg,
        mesh=mesh,
        model=model,
        collector=Collector(
            cfg=cfg,
            task=task,
            asking=Asking(cfg, task, model.tokenizer, model.pad_id),
            model=model,
            engine=engine,
            rewards=rewards,
            experts=experts,
            root=root,
            regroup=regrouped if cfg.plan.groups > 1 else None,
            recall=partial(recalled, cfg, learner) if "replay" in algo.needs(cfg.method) else None,
            rely=partial(reliance, learner, cfg.group_rows),
            **_skills(cfg, model, engine, learner, rewards),
            stop=partial(stops_of, cfg, learner, model.tokenizer),
        ),
        learner=learner,
        roles=role_learners(cfg, learner),
        evaluator=Evaluator(cfg=cfg, task=task, model=model, engine=exact, rewards=rewards),
        root=root,
    )


def _skills(
    cfg: Config, model: LoadedModel, engine: Engine, learner: Learner, rewards: Sequence[Reward]
) -> dict[str, Any]:
    """How skills are chosen and made; fields of the collector."""
    if "skills" not in algo.needs(cfg.method):
        return {}
    scorer = dataclasses.replace(learner, temperature=1.0)
    of = f"method {cfg.method.name!r}"
    return {
        "choose": partial(chosen_skills, cfg, scorer, model.tokenizer),
        "distil": Distilling(cfg=cfg, model=model, engine=engine, rewards=rewards, of=of),
    }


def make_engine(
    cfg: Config,
    mesh: Mesh,
    arch: Architecture,
    eos_ids: tuple[int, ...],
    tokenizer: PreTrainedTokenizerBase | None,
    frozen: PyTree = None,
) -> Engine:
    """The sampler of a run; without a tokenizer it compiles and does not draw."""
    on_cpu, gather = mesh.devices.flat[0].platform == "cpu", cfg.rollout.gather_weights
    attention = attention_on(cfg, mesh)
    graphdef, _ = decoder.build(arch, dtype=cfg.model.dtype, attention=attention, gathered=gather)
    return Engine(
        graphdef=graphdef,
        mesh=mesh,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        unstack=on_cpu,
        narrow=on_cpu,
        dtype=cfg.model.dtype,
        chunk_tokens=cfg.rollout.chunk_tokens,
        slots=cfg.rollout.slots,
        weights=cfg.rollout.weights,
        kv=cfg.rollout.kv,
        gather=gather,
        frozen=frozen,
        routes=cfg.model.routing_replay == "r3",
    )


def make_learner(
    cfg: Config,
    mesh: Mesh,
    graphdef: GraphDef,
    arch: Architecture,
    shapes: PyTree[jax.ShapeDtypeStruct],
    frozen: PyTree = None,
) -> Learner:
    """The learner of a run, of trained parameters of these shapes."""
    return Learner(
        graphdef=graphdef,
        method=algo.uncoupled(cfg.method),
        optimizer=make_optimizer(cfg.optim, cfg.run.steps),
        mesh=mesh,
        shapes=shapes,
        shardings=param_shardings(mesh, trained_axes(cfg, arch)[0], shapes),
        frozen=frozen,
        temperature=cfg.rollout.temperature,
        remat=cfg.model.remat,
        logp_chunk_tokens=cfg.optim.logp_chunk_tokens,
        microbatch_completions=cfg.optim.microbatch_completions,
        log_entropy=cfg.log.entropy,
        packing=cfg.optim.packing and not algo.needs(cfg.method) & {"preference", "prefix_scores"},
        router=RouterLoss(
            balance=cfg.model.router_aux_coef,
            z=cfg.model.router_z_coef,
            replay=cfg.model.routing_replay != "measure",
        ),
    )
