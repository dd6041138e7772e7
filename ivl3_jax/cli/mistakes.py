"""What a user is told of a mistake."""

# The extra that brings a module, for a message when it is absent.
EXTRAS = {
    "array_record": "shards",
    "av": "video",
    "gcsfs": "gcs",
    "libtpu": "tpu",
    "matplotlib": "demo",
    "msgpack": "shards",
    "pyarrow": "parquet",
    "sklearn": "demo",
    "torch": "parity",
    "transformers": "parity",
}


def explain(error: Exception) -> str | None:
    """One line for a user, or None if the error is a fault of the program."""
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(missing)
        return extra and f"this needs {missing}, which is not installed: it comes with the extra {extra!r} of ivl3-jax"
    if isinstance(error, ImportError):
        # fsspec's way to say that a bucket's package is missing.
        return "gs:// needs gcsfs: it comes with the extra 'gcs' of ivl3-jax" if "gcsfs" in str(error) else None
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
