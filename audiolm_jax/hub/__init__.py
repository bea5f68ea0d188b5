"""Published checkpoints without torch: download, read, write.

    files     a folder, a safetensors file or a repository owner/name@revision -> config.json and tensors, and back
    weights   tensors by name -> the parameters of a module, and back; weight normalisation folded; all defects of a
              file in one message; a fingerprint
    layers    Linear, Norm, Embedding, Conv, MLP, Attention, named and laid out as in the files; rotary positions

A published model is a module built from `layers` under `jax.eval_shape`, filled by `Weights.fill` with a function that
renames paths, and closed by `Weights.finish`, which raises InputError for tensors that are missing, misshapen or left
over. Codecs (`codecs/mimi.py`), encoders and families all follow that pattern.
"""
