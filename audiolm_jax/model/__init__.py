"""The transformer and its parts: layers, attention, losses, LoRA, sharding, checkpoints, kernels/."""
