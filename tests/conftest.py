"""What every test runs under; set before jax is first imported."""

import os
import signal
from pathlib import Path

import pytest

from ivl3_jax.cli.main import set_platform_defaults

CACHE = Path(__file__).parents[1] / ".cache/jax"
DEVICES = "--xla_force_host_platform_device_count"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
set_platform_defaults()
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell ignores Ctrl-C for what it runs in the background; here some tests, and what they start, wait for one.
signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers already fill the cores; PyTorch's and BLAS's own threads would only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def torch():
    """PyTorch, for tests against the reference; they are skipped where the extra `parity` is not installed."""
    return pytest.importorskip("torch", reason="PyTorch is not installed (extra: parity)")


@pytest.fixture(scope="session")
def transformers(torch):
    """Hugging Face transformers, with PyTorch; as `torch`."""
    return pytest.importorskip("transformers", reason="transformers is not installed (extra: parity)")


@pytest.fixture(scope="session")
def libtpu():
    """The TPU compiler, for ahead-of-time compilation; skipped where the extra `tpu` is not installed."""
    return pytest.importorskip("libtpu", reason="libtpu is not installed (extra: tpu)")
