"""What the oldest JAX (0.7) and Flax (0.11) that this package runs on call otherwise, or lack: once, here.

They are the versions that hosted notebooks bring, where replacing JAX would part it from the plugin of the accelerator.
"""

import jax
from flax import nnx

# Flax before 0.12 takes plain lists and dicts of modules.
List = getattr(nnx, "List", list)
Dict = getattr(nnx, "Dict", dict)


def mesh() -> jax.sharding.Mesh:
    """The mesh of `jax.set_mesh`, with its devices; an empty one without it."""
    if hasattr(jax.sharding, "get_mesh"):
        return jax.sharding.get_mesh()
    from jax._src.mesh import get_concrete_mesh  # its name before JAX 0.8

    return get_concrete_mesh()


def platform() -> str:
    """Platform of the current mesh, which may be abstract, as JAX names it; without a mesh the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    if hasattr(device, "platform"):
        return device.platform
    kind = device.device_kind.lower()  # before JAX 0.9: "cpu", "TPU v5 lite", "Tesla T4", "NVIDIA L4"
    return "cpu" if kind == "cpu" else "tpu" if kind.startswith("tpu") else "gpu"
