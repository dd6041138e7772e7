"""The two vocabularies of sharding: mesh axes, which a pod has, and logical axes, which arrays have.

Model code names logical axes only; a `ShardingPlan` translates.
"""

# Fixed order, size 1 when unused. `data` replicates parameters (the axis between slices of a multislice job), `stage`
# is the pipeline, `fsdp` shards parameters and rows, `context` the sequence, `tensor` heads and hidden sizes.
MESH_AXES = ("data", "stage", "fsdp", "context", "tensor")

COMPONENTS = ("vision", "projector", "decoder")

# What a dimension of a parameter, or of an activation, may be called.
PARAMETER_AXES = {
    "embed": "model width of the component",
    "heads": "attention heads",
    "kv_heads": "key/value heads",
    "head_dim": "size of one head",
    "mlp": "hidden size of an MLP",
    "vocab": "rows of the embedding table",
    "patch": "values of one patch, 3 * patch_size**2",
    "positions": "the ViT's position table",
    "unshuffled": "ViT width times the merged patches, the projector's input",
    "rank": "rank of an adapter",
}
ACTIVATION_AXES = {
    "batch": "packed rows",
    "sequence": "positions of a row, inside a block",
    "residual": "positions of a row, in the residual stream between blocks",
    "tiles": "all tiles of all rows",
    "positions": "CLS and patches of a tile",
    "visual": "visual tokens of a row",
    "embed": "model width of the component",
    "heads": "attention heads",
    "kv_heads": "key/value heads",
    "head_dim": "size of one head",
    "mlp": "hidden size of an MLP",
    "vocab": "logits",
    "patch": "values of one patch",
    "unshuffled": "the projector's input",
}
