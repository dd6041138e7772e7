"""Compiler options by chip: the public flags of published training runs that today's compiler takes."""

from collections.abc import Mapping

from ivl3_jax.sharding.plan import ShardingPlan

Options = Mapping[str, bool | int | str]

# Collectives run beside compute; gradients of replicated parameters are reduced while the backward pass goes on.
_OVERLAP = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}
# A gather is cut into pieces that travel inside the fusions beside it.
_FUSED_GATHERS = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
}
# And sums, so that a layer's gradients need not be waited for.
FUSED_SUMS = {
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": True,
}
_FUSED = _FUSED_GATHERS | FUSED_SUMS

# Moves between device and host begin early and run beside compute.
OFFLOADING: Options = {
    "xla_tpu_enable_all_experimental_scheduler_features": True,
    "xla_tpu_enable_scheduler_memory_pressure_tracking": "ENABLED",
    "xla_tpu_host_transfer_overlap_limit": 24,
    "xla_tpu_aggressive_opt_barrier_removal": "ENABLED",
    "xla_lhs_prioritize_async_depth_over_stall": "ENABLED",
    "xla_should_allow_loop_variant_parameter_in_chain": "ENABLED",
    "xla_should_add_loop_invariant_op_in_chain": "ENABLED",
    "xla_max_concurrent_host_send_recv": 100,
    "xla_tpu_scheduler_percent_shared_memory_limit": 100,
    "xla_latency_hiding_scheduler_rerun": 2,
}

# From MaxText's configurations of v5e, v5p and v6e (configs/tpu of its repository) and its library of flags.
OPTIONS: Mapping[str, Options] = {
    "v4": _OVERLAP | _FUSED,
    "v5e": _OVERLAP | _FUSED,
    "v5p": _OVERLAP
    | _FUSED
    | {
        "xla_tpu_megacore_fusion_allow_ags": False,
        "xla_enable_async_collective_permute": True,
        "xla_tpu_enable_ag_backward_pipelining": True,
    },
    # Without fused collectives: with the large VMEM they take the compiler longer than 20 minutes.
    "v6e": _OVERLAP
    | {
        "xla_tpu_scoped_vmem_limit_kib": 98304,
        "xla_tpu_use_minor_sharding_for_major_trivial_input": True,
        "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": 1,
        "xla_tpu_assign_all_reduce_scatter_layout": True,
    },
}


def fewer_options(error: Exception, options: Options) -> tuple[Options, str] | None:
    """The options that are left for a step which the compiler gave up for some of them, and what to tell of it.

    None where the error has nothing to do with options that could be left out.
    """
    said = str(error)
    if "requires allocation in the alternate memory" in said:  # which a few plans meet
        taken = list(FUSED_SUMS)
        why = "fused sums of gradients find no room in VMEM; the step is compiled without them"
    elif "Continuation fusion" in said:  # libtpu 0.0.50 says so of v4 and v5p
        taken = [name for name in options if "async_collective_fusion" in name]
        why = "this libtpu does not fuse collectives into compute on this chip; the step is compiled without that"
    else:
        return None
    fewer = {name: value for name, value in options.items() if name not in taken}
    return None if fewer == dict(options) else (fewer, why)


def options_of(chip: str, plan: ShardingPlan) -> dict[str, bool | int | str]:
    """Options for a plan on a chip: those of the table, with those of offloading where it offloads, and its own.

    An option for which the plan has None is left out.
    """
    offloads = bool(plan.offload) or any(plan.remat_of(part).offload for part in ("vision", "decoder"))
    chosen = {**OPTIONS[chip], **(OFFLOADING if offloads else {}), **plan.compiler.get(chip, {})}
    return {name: value for name, value in chosen.items() if value is not None}
