"""Everything fixed about a run, put together once from its config."""

import dataclasses

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jgrpo import algo
from jgrpo.buckets import bucket
from jgrpo.collect import Collector
from jgrpo.config import Config
from jgrpo.data.tasks import load_task
from jgrpo.heldout import Evaluator
from jgrpo.keys import root_key
from jgrpo.learner.optim import make_optimizer
from jgrpo.learner.step import Learner
from jgrpo.memory import nothing
from jgrpo.models.architecture import logical_axes
from jgrpo.models.load import LoadedModel, load
from jgrpo.parallel.mesh import make_mesh
from jgrpo.parallel.rules import param_shardings, replicated
from jgrpo.rewards.score import build, close
from jgrpo.rollout.engine import Engine
from jgrpo.types import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Everything fixed about a run.

    Attributes:
      cfg: the config.
      mesh: the devices.
      model: architecture, tokenizer and initial weights.
      collector: prompts, sampler and rewards.
      learner: the update.
      evaluator: the held-out evaluation.
      root: the key from which all randomness is derived.
    """

    cfg: Config
    mesh: Mesh
    model: LoadedModel
    collector: Collector
    learner: Learner
    evaluator: Evaluator
    root: Key[Array, ""]

    def initial_state(self) -> TrainState:
        """The initial weights on the mesh, with fresh states of optimizer and method."""
        method, state = self.cfg.method, self.learner.init(self.model.params)
        needed, num_prompts = algo.needs(method), len(self.collector.task.train)
        strategy, aux = {}, {}
        if "state" in needed:
            strategy = algo.init_state(method, num_prompts=num_prompts)
        if "drift" in needed:
            width = bucket(self.cfg.rollout.max_completion_tokens)
            aux["previous"] = nothing(num_prompts, width)
        strategy, aux = jax.device_put((strategy, aux), replicated(self.mesh))
        return dataclasses.replace(state, strategy=strategy, aux=aux)

    def close(self) -> None:
        """Ends the worker processes of the rewards."""
        close(self.collector.rewards)


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
        param_dtype=cfg.model.param_dtype,
    )
    task = load_task(cfg.data)
    rewards = build(cfg.reward.functions, task, cfg.reward)
    root = root_key(cfg.run.seed)
    shapes = jax.eval_shape(lambda: model.params)
    engine = Engine(
        graphdef=model.graphdef,
        mesh=mesh,
        tokenizer=model.tokenizer,
        eos_ids=model.eos_ids,
        dtype=cfg.model.dtype,
        chunk_tokens=cfg.rollout.chunk_tokens,
    )
    learner = Learner(
        graphdef=model.graphdef,
        method=algo.uncoupled(cfg.method),
        optimizer=make_optimizer(cfg.optim, cfg.run.steps),
        mesh=mesh,
        shapes=shapes,
        shardings=param_shardings(mesh, logical_axes(model.arch), shapes),
        temperature=cfg.rollout.temperature,
        remat=cfg.model.remat,
        logp_chunk_tokens=cfg.optim.logp_chunk_tokens,
        microbatch_completions=cfg.optim.microbatch_completions,
    )
    parts = {"cfg": cfg, "task": task, "model": model, "engine": engine, "rewards": rewards}
    return Run(
        cfg=cfg,
        mesh=mesh,
        model=model,
        collector=Collector(**parts, root=root),
        learner=learner,
        evaluator=Evaluator(**parts),
        root=root,
    )
