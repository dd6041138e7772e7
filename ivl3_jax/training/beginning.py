"""The model that a run begins with: its definition first, its parameters when they are needed."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from ivl3_jax.config import InternVLConfig, Lora
from ivl3_jax.conversion.reader import read_params, resolve_tying
from ivl3_jax.data.processor import Processor
from ivl3_jax.models.adapters import adapted, with_adapters
from ivl3_jax.models.model import Model, Params, abstract_model, fresh_params
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import ModelRecipe, TrainConfig
from ivl3_jax.training.processor import open_config, open_processor
from ivl3_jax.training.step import TrainState, abstract_state


@dataclass(frozen=True)
class Beginning:
    """A model as a recipe describes it, without its parameters.

    Attributes:
        recipe: the description. seed: of what is initialised. adapters: by component.
        config, plan, mesh, graphdef: as in `Model`. abstract: shapes, dtypes and layouts of the parameters.
        base: definition and parameters likewise, without adapters.
        source: the directory with tokenizer and processor files, and the weights unless they are fresh.
        processor: that of the source.
    """

    recipe: ModelRecipe
    seed: int
    adapters: Mapping[str, Lora]
    config: InternVLConfig
    plan: ShardingPlan
    mesh: Mesh
    graphdef: nnx.GraphDef
    abstract: Params
    base: tuple[nnx.GraphDef, Params]
    source: Path
    processor: Processor

    @classmethod
    def of(
        cls, recipe: ModelRecipe, plan: ShardingPlan, seed: int, adapters: Mapping[str, Lora] | None = None
    ) -> "Beginning":
        """Reads configs and tokenizer, and checks the plan.

        Raises:
            ValueError, OSError: a file is missing or faulty, the tokenizer does not belong to a model of that size, or
                the plan does not fit it.
        """
        source, config, processor = (
            Path(str(recipe.checkpoint or recipe.tokenizer)),
            open_config(recipe),
            open_processor(recipe),
        )
        if recipe.checkpoint is not None:
            config = resolve_tying(source, config)
        if recipe.drop_path is not None:
            config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, drop_path=recipe.drop_path))
        mesh = plan.make_mesh()
        base = abstract_model(config, plan, mesh, param_dtype=recipe.param_dtype, dtype=recipe.dtype)
        adapters = adapters or {}
        graphdef, abstract = with_adapters(*base, adapters, plan, mesh) if adapters else base
        return cls(recipe, seed, adapters, config, plan, mesh, graphdef, abstract, base, source, processor)

    def model(self) -> Model:
        """The model with its parameters, read or initialised.

        Raises:
            ValueError, OSError: the weights are missing or faulty.
        """
        graphdef, abstract = self.base
        place = self.config, self.plan, self.mesh, abstract
        if self.recipe.checkpoint is None:
            params = fresh_params(*place, seed=self.seed)
        else:
            params = read_params(self.source, abstract, self.config)
            if self.recipe.fresh:
                params |= fresh_params(*place, seed=self.seed, only=self.recipe.fresh)
        model = Model(self.config, self.plan, self.mesh, graphdef, params, self.source)
        return adapted(model, self.adapters, self.seed) if self.adapters else model

    def with_params(self, params: Params) -> Model:
        """The model with these parameters."""
        return Model(self.config, self.plan, self.mesh, self.graphdef, params, self.source)

    def state(self, config: TrainConfig) -> TrainState:
        """Shapes, dtypes and layouts of the training state."""
        return abstract_state(self.abstract, config, self.plan, self.mesh)
