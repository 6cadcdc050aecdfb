"""The network on a mesh: where its parameters lie, how they are born, and how it is applied."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbs_jax import garbage
from sbs_jax.head_loss import Head
from sbs_jax.models.attention_rows import BothRows
from sbs_jax.models.drawing import Drawing
from sbs_jax.models.interface import ModelConfig, network_of
from sbs_jax.partitioning import rules as rules_lib
from sbs_jax.partitioning.mesh import DATA_AXIS, MODEL_AXIS


class Program(Protocol):
    """What `jax.jit` returns, as far as it is used here."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program, compiling it first for shapes that are new."""

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """Traces it for arguments or their shapes; the result has `compile`."""

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Traces it for arguments or their shapes; the result has `jaxpr`."""


class Student:
    """A network laid out on a mesh; see `models.interface` for what it has to offer.

    Attributes:
      config: the network's dimensions.
      model: the Flax module.
      mesh: `data` × `model`.
      rules: the mesh axis of each logical axis.
      abstract_params: shapes and dtypes of the parameters, T5X's tree.
      param_shardings: the sharding of each parameter.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, *, fsdp: bool = False) -> None:
        self.config = config
        self.model = network_of(config, mesh.devices.flat[0].platform, mesh.size)
        self.mesh = mesh
        self.rules = rules_lib.logical_axis_rules(mesh, config.axis_sizes, fsdp=fsdp)
        # XLA:CPU runs virtual devices on one pool of threads: two programs whose devices wait for
        # one another, in flight together, can take all of its threads and never end.
        self._one_at_a_time = mesh.devices.size > 1 and mesh.devices.flat[0].platform == "cpu"
        self._drawing = Drawing(self._init_boxed)
        self.abstract_params = nn.unbox(self._drawing.boxed)
        self.param_shardings = rules_lib.param_shardings(self._drawing.boxed, mesh, self.rules)

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params))

    @property
    def placed_params(self) -> Any:
        """`abstract_params` with their shardings, as `checkpoints.loading.load_params` wants it."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.abstract_params,
            self.param_shardings,
        )

    @property
    def placed_inference_params(self) -> Any:
        """Shapes, dtypes and shardings of what `for_inference` returns."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(self.for_inference, self.abstract_params),
            self.param_shardings,
        )

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of a value that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def for_inference(self, params: Any) -> Any:
        """Returns parameters whose products need no cast: weights in the products' dtype.

        Products round them anyway, to the same bits, and decoding would do it for each token again.

        Args:
          params: float32 parameters on the mesh.

        Returns:
          The same tree, in which what projections multiply by has the products' dtype
          (`config.product_dtype` or else `config.dtype`). An embedding that is the head as well is
          rounded, too.
        """
        dtype = self.config.product_dtype or self.config.dtype
        if dtype == "float32":
            return params
        names = {"kernel"} | ({"embedding"} if self.config.logits_via_embedding else set())

        def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            return leaf.astype(dtype) if path[-1].key in names else leaf

        return jax.tree_util.tree_map_with_path(cast, params)

    def apply(
        self, params: Any, batch: Mapping[str, jax.Array], dropout_rng: jax.Array | None
    ) -> jax.Array:
        """Returns the logits [B, T, V] of a batch; see `training.step.Batch` for its arrays.

        `dropout_rng` None switches dropout off.
        """
        return self._apply("__call__", params, batch, dropout_rng)

    def hidden(
        self, params: Any, batch: Mapping[str, jax.Array], dropout_rng: jax.Array | None
    ) -> jax.Array:
        """Returns the hidden states [B, T, D] that `head` makes logits of; see `apply`."""
        return self._apply("hidden", params, batch, dropout_rng)

    @property
    def head(self) -> Head:
        """The output head, for a loss that applies it to some tokens at a time."""
        data = self.mesh.shape[DATA_AXIS]
        cut = self.mesh.shape[MODEL_AXIS] if dict(self.rules)["vocab"] else 1
        return Head(
            params_of=self._head_params,
            logits=self._head_logits,
            vocab_size=self.config.vocab_size // cut,
            groups=data,
            spread=self._spread_head,
        )

    def _apply(
        self,
        method: str,
        params: Any,
        batch: Mapping[str, jax.Array],
        dropout_rng: jax.Array | None,
    ) -> jax.Array:
        rows = BothRows.of(batch)
        return self.model.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            encoder_segment_ids=batch["encoder_segment_ids"],
            decoder_segment_ids=batch["decoder_segment_ids"],
            decoder_source_ids=batch.get("decoder_source_ids"),
            **({} if rows is None else {"rows": rows}),
            deterministic=dropout_rng is None,
            rngs={} if dropout_rng is None else {"dropout": dropout_rng},
            method=method,
        )

    def _head_params(self, params: Any) -> Any:
        # Rounded before it is copied or sent, as the product would round it anyway.
        own = self._of_head(params)
        return jax.tree.map(lambda leaf: leaf.astype(self.config.dtype), own)

    def _of_head(self, tree: Any) -> Any:
        """The part of a tree of parameters, or of their shardings, that is the head's."""
        if self.config.logits_via_embedding:
            return {"token_embedder": tree["token_embedder"]}
        return {"decoder": {"logits_dense": tree["decoder"]["logits_dense"]}}

    def _head_logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        return self.model.apply({"params": params}, hidden, method="logits")

    def _spread_head(self, tree: Any) -> Any:
        """Lays copies [`data`, …] of the head out: each where its rows are, whole but for `model`.

        With FSDP, this is where the head is gathered, once a step.
        """

        def spread(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
            axes = (None if axis == DATA_AXIS else axis for axis in sharding.spec)
            spec = PartitionSpec(DATA_AXIS, *axes)
            return jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, spec))

        return jax.tree.map(spread, tree, self._of_head(self.param_shardings))

    def jit(self, function: Callable[..., Any], **options: Any) -> Program:
        """`jax.jit`, traced and called within this mesh and its logical-axis rules.

        Python looks for no cyclic garbage meanwhile: tracing makes a million objects that stay.
        """
        jitted = jax.jit(function, **options)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.context(), garbage.collection_paused():
                result = jitted(*args, **kwargs)
            return jax.block_until_ready(result) if self._one_at_a_time else result

        def lower(*args: Any, **kwargs: Any) -> Any:
            with self.context(), garbage.collection_paused():
                return jitted.lower(*args, **kwargs)

        def trace(*args: Any, **kwargs: Any) -> Any:
            with self.context():
                return jitted.trace(*args, **kwargs)

        # As what `jax.jit` returns has.
        call.lower, call.trace = lower, trace  # type: ignore[attr-defined]
        return cast(Program, call)

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Within it, the network's logical axis names mean axes of this mesh.

        `jax.set_mesh`, not `with mesh`: since Flax 0.12, `nn.with_logical_constraint` constrains
        nothing under the latter. Both settings belong to the calling thread, so every call enters
        them anew. One device has nothing to cut, and is spared the constraints.
        """
        with contextlib.ExitStack() as stack:
            if self.mesh.size > 1:
                stack.enter_context(jax.set_mesh(self.mesh))
            stack.enter_context(nn.logical_axis_rules(self.rules))
            yield

    def init_params(self, seed: int) -> Any:
        """Random parameters, each created in its own shards; the same on every mesh."""
        return self._drawing(seed, self.param_shardings, self.jit)

    def _init_boxed(self, key: jax.Array) -> Any:
        tokens = jnp.ones((1, 2), jnp.int32)
        return self.model.init(key, tokens, tokens)["params"]
