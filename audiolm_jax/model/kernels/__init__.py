"""Attention and loss kernels per platform: cpu, tpu (splash attention), gpu (cuDNN)."""
