"""A model to begin training with: a published ViT, a published language model, and a projector drawn at random."""

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from ivl3_jax.config import DecoderConfig, InternVLConfig, ProjectorConfig, VisionConfig
from ivl3_jax.config_fields import Fields
from ivl3_jax.conversion.arrays import ArrayLayers
from ivl3_jax.conversion.assembled_tokenizer import Vocabulary, read_vocabulary, write_tokenizer
from ivl3_jax.conversion.checksums import check_weights
from ivl3_jax.conversion.companions import write_json
from ivl3_jax.conversion.convert import DirectoryLayers, identity_of
from ivl3_jax.conversion.names import Parameter
from ivl3_jax.conversion.safetensors_file import SafetensorsDirectory
from ivl3_jax.conversion.shards import Chunks, Tensor
from ivl3_jax.conversion.writer import Report, write_layers
from ivl3_jax.hf_config import config_fields
from ivl3_jax.models.model import abstract_model, fresh_params
from ivl3_jax.original_config import decoder_fields, to_original, vision_fields
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.written_fields import TOKEN_IDS

VIT = "InternVisionModel"
TABLE, HEAD = "decoder/embed/table", "decoder/head/kernel"
BLOCK = re.compile(r"^encoder\.layers\.(\d+)\.")


def assemble(
    vision: str | Path,
    decoder: str | Path,
    destination: str | Path,
    *,
    seed: int = 0,
    vision_layers: int | None = None,
    max_shard_bytes: float = 5e9,
    report: Report = lambda phase, done, total: None,
) -> InternVLConfig:
    """Writes a checkpoint in the `-hf` layout out of the two that models are published in alone.

    All tensors of the two are bit by bit what they were, each in its dtype, but for the vocabulary, which gets the size
    of the tokenizer with InternVL's tokens, as in the published models: rows beyond that (Qwen pads its table) are cut
    off. As the authors' code does it, new tokens have the rows of the table that were there already, drawn at random
    where it is too short, and in the output projection the mean of the rows before. The output projection is always a
    tensor of its own, a copy of the table where the language model had tied the two.

    Args:
        vision: an InternViT directory. decoder: a Qwen2, InternLM2 or InternLM3 causal language model's, with its
            tokenizer.
        destination: must not exist, or be empty, or hold an interrupted attempt, which is continued.
        seed: of the projector, whose values are those of a run's `fresh: [projector]` with that seed; of new rows.
        vision_layers: how many of the ViT's layers are taken, from the first on; by default all. The 48-layer
            InternViT-6B of before V1-5 serves InternVL with 45.
        report: as of `convert`.

    Returns:
        The config of the new checkpoint.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: a file is missing or faulty, see `SafetensorsDirectory` and
            `match_names`; a model of another kind; a tokenizer without the tokens of turns; a taken destination.
    """
    vision, decoder = Path(vision), Path(decoder)
    vit, language = read_vision(vision, vision_layers), read_decoder(decoder)
    vocabulary = read_vocabulary(decoder)
    if vocabulary.known > language.vocab:
        raise ValueError(
            f"{decoder / 'config.json'}: vocab_size is {language.vocab}, but the tokenizer beside it has "
            f"{vocabulary.known} tokens; they must belong together"
        )
    grown = dataclasses.replace(language, vocab=vocabulary.size, tie_embeddings=False)
    try:
        before = InternVLConfig(vit, ProjectorConfig(), language, image_token_id=vocabulary.image_token_id)
    except ValueError as error:
        raise ValueError(f"{vision / 'config.json'}: {error}") from None
    config = dataclasses.replace(before, decoder=grown)

    def check() -> None:
        for directory in (vision, decoder):
            check_weights(directory, partial(report, "checking"))

    with (
        FirstLayers(vision, vision_layers) as vit_file,
        SafetensorsDirectory(decoder) as language_file,
        tempfile.TemporaryDirectory() as temporary,
    ):
        if "lm_head.weight" in language_file.tensors or "output.weight" in language_file.tensors:
            before = dataclasses.replace(before, decoder=dataclasses.replace(language, tie_embeddings=False))
        layers = AssembledLayers(
            DirectoryLayers(vit_file, before, "vision"),
            DirectoryLayers(language_file, before, "decoder"),
            fresh_projector(config, seed),
            grown,
            vocabulary,
            seed,
        )
        layers.origin = f"ViT of `{vision.resolve().name}`, decoder of `{decoder.resolve().name}`, a fresh projector"
        companions = Path(temporary) / decoder.resolve().name  # named so in the model card
        companions.mkdir()
        write_tokenizer(decoder, companions)
        write_json(companions / "config.json", _with_token_ids(to_original(config), decoder))
        write_layers(
            layers,
            config,
            destination,
            max_shard_bytes=max_shard_bytes,
            copy_from=companions,
            identity={
                "vision": identity_of(vision),
                "decoder": identity_of(decoder),
                "seed": seed,
                "vision_layers": vision_layers,
                "max_shard_bytes": max_shard_bytes,
            },
            check=check,
            report=report,
        )
    return config


def read_vision(directory: Path, layers: int | None = None) -> VisionConfig:
    """The config of an InternViT published alone, with its first `layers` layers.

    Raises:
        FileNotFoundError, ValueError: as `read_config`; it is another model, or has fewer layers.
    """
    found, file = config_fields(directory)
    fields = Fields(found, str(file))
    fields.expect("architectures", ([VIT],), "an InternViT by itself, such as InternViT-300M-448px-V2_5")
    arguments = vision_fields(fields)
    if layers is not None:
        if not 1 <= layers <= arguments["layers"]:
            raise ValueError(
                f"{file}: num_hidden_layers is {arguments['layers']}, but {layers} are to be taken; valid: 1 to "
                f"{arguments['layers']}"
            )
        arguments["layers"] = layers
    try:
        return VisionConfig(**arguments)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_decoder(directory: Path) -> DecoderConfig:
    """The config of a causal language model published alone.

    Raises:
        FileNotFoundError, ValueError: as `read_config`; it is another model.
    """
    found, file = config_fields(directory)
    fields = Fields(found, str(file))
    arguments = decoder_fields(fields)
    try:
        return DecoderConfig(**arguments)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def fresh_projector(config: InternVLConfig, seed: int) -> ArrayLayers:
    """The projector of a model, initialised in float32 as that of any fresh one."""
    plan = ShardingPlan()
    mesh = plan.make_mesh()
    _, abstract = abstract_model(config, plan, mesh)
    params = fresh_params(config, plan, mesh, abstract, seed=seed, only=("projector",))
    return ArrayLayers(flatten_dict(params, sep="/"))


class FirstLayers(SafetensorsDirectory):
    """A ViT's directory without the layers behind the first `layers`; all where that is None."""

    def __init__(self, directory: Path, layers: int | None) -> None:
        super().__init__(directory)
        if layers is not None:
            kept = {name: BLOCK.match(name) for name in self.tensors}
            self.tensors = {
                name: self.tensors[name] for name, found in kept.items() if found is None or int(found[1]) < layers
            }


class AssembledLayers:
    """The layers of a checkpoint whose components come from three places, its vocabulary fitted to a tokenizer."""

    origin = "several checkpoints"

    def __init__(
        self,
        vision: DirectoryLayers,
        decoder: DirectoryLayers,
        projector: ArrayLayers,
        config: DecoderConfig,
        vocabulary: Vocabulary,
        seed: int,
    ) -> None:
        """`config`: of the decoder that is written."""
        self._parts: Mapping[str, Any] = {"vision": vision, "decoder": decoder, "projector": projector}
        self._decoder, self._config, self._vocabulary, self._seed = decoder, config, vocabulary, seed

    def dtype(self, parameter: Parameter, layer: int) -> np.dtype:
        """That of the source; of the projector that of the embedding table."""
        component = parameter.path.partition("/")[0]
        if parameter.path == HEAD or component == "projector":
            parameter, layer = self._rows_of(parameter.path), 0
            component = "decoder"
        return self._parts[component].dtype(parameter, layer)

    def chunks(self, tensor: Tensor) -> Chunks:
        path = tensor.parameters[0].path
        if path in (TABLE, HEAD):
            return self._vocabulary_rows(tensor, path)
        return self._parts[path.partition("/")[0]].chunks(tensor)

    def _rows_of(self, path: str) -> Parameter:
        """The source's parameter that the rows of the table or the output projection come from."""
        held = path if path == HEAD and self._decoder.holds(HEAD) else TABLE
        return self._decoder[held]

    def _vocabulary_rows(self, tensor: Tensor, path: str) -> Chunks:
        """The rows of the source, as many as there are ids, and behind them those of new tokens."""
        own, known, size = self._rows_of(path), self._vocabulary.known, self._vocabulary.size
        kept = min(known if path == HEAD else size, own.layout.their_shape[0])
        at, total = 0, np.zeros(self._config.width)
        for block in self._decoder.chunks(dataclasses.replace(tensor, parameters=(own,))):
            rows = np.ascontiguousarray(block[: kept - at])
            if not len(rows):
                break
            at += len(rows)
            if path == HEAD:
                total += rows.sum(axis=0, dtype=np.float64)
            yield rows
        if at == size:
            return
        if path == HEAD:
            new = np.broadcast_to(total / known, (size - at, len(total)))
        else:
            spread = self._config.initializer_range
            new = np.random.default_rng(self._seed).normal(0, spread, (size - at, len(total)))
        yield new.astype(tensor.dtype)


def _with_token_ids(fields: dict[str, Any], decoder: Path) -> dict[str, Any]:
    """config.json of the original layout with the ids of special tokens that the decoder's own states."""
    found, _ = config_fields(decoder)
    ids = {name: found[name] for name in TOKEN_IDS if found.get(name) is not None}
    return fields | ids | {"llm_config": fields["llm_config"] | ids}
