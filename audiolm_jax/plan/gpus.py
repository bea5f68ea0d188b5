"""Descriptions of GPUs for XLA's compiler, which needs neither a GPU nor CUDA, only jax's CUDA plugin.

The fields are those of XLA's GpuTargetConfigProto, the values from openxla/xla, xla/backends/gpu/target_config/specs.
Kernels are chosen by rules, without autotuning: a run autotunes, and is at least as fast.
"""

import importlib.util
import logging
from typing import Any

from audiolm_jax.errors import InputError

NOTE = (
    "note: attention is dense in this plan, for cuDNN's kernel cannot be built without a GPU; the run, which takes it, "
    "needs less memory and less time in long rows"
)
COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0}

# name of the card, compute capability, multiprocessors, fp32 units of each, shared memory of each and of a block, level
# 2 cache, clock in GHz, memory in bytes and its bandwidth in bytes/s
CARDS = {
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 167936, 166912, 41943040, 1.41, 85100068864, 2039040000000),
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 233472, 232448, 52428800, 1.98, 84942979072, 3352320000000),
    "h200": ("NVIDIA H200 141GB HBM3e", (9, 0), 132, 128, 233472, 232448, 52428800, 1.98, 151397597184, 4800000000000),
}


def target(kind: str) -> str:
    """The text of a GpuTargetConfigProto."""
    name, (major, minor), cores, units, shared, block, cache, clock, memory, bandwidth = CARDS[kind]
    return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {block}
      core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      name: "{name}" device_vendor: "NVIDIA Corporation"
      driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
    device_description_str: "{name}"
    """


def devices(kind: str, hosts: int, of_each: int) -> list[Any]:
    """Descriptions of `hosts` machines with `of_each` GPUs. Raises InputError if the plugin is not installed."""
    plugins = importlib.util.find_spec("jax_plugins")
    if plugins is None or not any(importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13)):
        import jaxlib

        version = jaxlib.__version__
        raise InputError(
            f"--topology={kind}:{hosts * of_each}: compiling for a GPU needs jax's CUDA plugin, which is not "
            f"installed; pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} "
            "(it needs neither a GPU nor CUDA)"
        )
    from jax.experimental import topologies

    logging.getLogger("jax._src.xla_bridge").setLevel(logging.CRITICAL)  # it misses CUDA, which nothing here needs
    described = topologies.get_topology_desc(
        kind, platform="cuda", target_config=target(kind), topology=f"1x{hosts}x{of_each}"
    )
    return list(described.devices)
