"""Looks inside the model: what every decoder layer adds to the residual stream, for one question about one picture.

python examples/taps.py CHECKPOINT PICTURE "What is written here?"
"""

import sys

import jax
import jax.numpy as jnp
from flax import nnx

import ivl3_jax
from ivl3_jax.data.collate import collate
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Message, Sample
from ivl3_jax.layers import taps
from ivl3_jax.models.model import place_batch


def main(checkpoint: str, picture: str, question: str) -> None:
    """Prints, by layer, the mean norm of what attention and MLP write beside that of the stream."""
    model = ivl3_jax.load(checkpoint)
    processor = Processor.from_directory(checkpoint)
    prompt = processor.encode_prompt(Sample((Message("user", question),), (picture,)))
    batch = collate(processor, [[prompt]], tokens=len(prompt), tiles=len(prompt.tiles), segments=1)

    @jax.jit
    def inside(params: dict, batch: ivl3_jax.Batch) -> dict[str, jax.Array]:
        with taps.collect() as found:
            nnx.merge(model.graphdef, params)(batch)
        return {
            name: jnp.linalg.norm(x, axis=-1).mean((-1, -2)) for name, x in found.items() if "decoder/layers" in name
        }

    with jax.set_mesh(model.mesh):
        norms = inside(model.params, place_batch(batch, model.plan, model.mesh))
    print("layer  attention      mlp   stream")
    for layer, row in enumerate(
        zip(*(norms[f"decoder/layers/{name}"] for name in ("attention", "mlp", "out")), strict=True)
    ):
        print(f"{layer:5d}  {row[0]:9.3f}{row[1]:9.3f}{row[2]:9.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
