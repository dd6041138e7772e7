"""`ivl3 lab run`: a plan executed on this machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from ivl3_jax.cli.arguments import parse

HELP = """Executes a plan on fake devices with a tiny model, and holds loss, gradients and a step against one device.
ivl3 lab run --plan context --mesh '{fsdp: 2, context: 2, tensor: 2}'
"""
MOST = 64  # devices that a small machine bears
SHOWN = 8
FAKE = "xla_force_host_platform_device_count"


@dataclass(frozen=True)
class RunQuestion:
    """A plan.

    Attributes:
        plan: a shipped sharding plan, or a YAML file.
        mesh: sizes of its axes.
    """

    plan: str
    mesh: Mapping[str, int] = field(default_factory=dict)


def run(argv: list[str]) -> int:
    """Prints the largest deviations; 1 where one is over its tolerance."""
    summary, example = HELP.strip().splitlines()
    question = parse(RunQuestion, argv, prog="ivl3 lab run", description=summary, example=example)
    from ivl3_jax.sharding.plan import ShardingPlan

    plan = ShardingPlan.read(question.plan, question.mesh)
    if plan.devices > MOST:
        raise ValueError(
            f"plan {plan.name!r} needs {plan.devices} devices; this runs up to {MOST}: give a smaller --mesh of the "
            "same axes, which computes the same"
        )
    # Before jax makes its devices.
    flags = os.environ.get("XLA_FLAGS", "")
    if FAKE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{FAKE}={plan.devices}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from ivl3_jax.lab.executed import deviations
    from ivl3_jax.lab.telling import table

    found = sorted(deviations(plan), key=lambda each: -each.error / each.tolerance)
    over = [each for each in found if each.over]
    rows = [(each.what, f"{each.error:.1e}", f"{each.tolerance:.0e}") for each in (over or found)[:SHOWN]]
    print("\n".join(table([("farthest from one device", "relative", "allowed"), *rows])))
    verdict = f"{len(over)} over" if over else "none over"
    print(f"{plan.name} on {plan.devices} devices: {len(found)} comparisons, {verdict} the tolerance")
    return 1 if over else 0
