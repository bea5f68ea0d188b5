"""The transformer and what it stands on: layers, attention, losses, LoRA, sharding, checkpoints, kernels/."""
