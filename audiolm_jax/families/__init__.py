"""Published models, one file per family: a weight table, a configuration, a prompt. Fine-tuning starts from them.

A family is a module in `FAMILIES`, under the name that a run's `Spec.source.family` has, with

    TYPES                            the values of "model_type" in config.json that it reads
    TUNED                            those of TYPES that can be fine-tuned
    KEPT                             of its workdir, what a run that is fine-tuned from it copies (if TUNED)
    FILES                            what it needs beside config.json and the weights
    read(folder, dtype, config)      a folder in the Hugging Face layout and its config.json -> a published model
    save(workdir, published)         writes it as the workdir of a run
    of_run(workdir, model, spec)     the weights of such a run -> a published model
    write(folder, published)         the inverse of `read`

A published model has `spec`, `generator(sampling)` and, if text goes through an encoder, `text_encoder` (texts ->
their states). published.py finds the family of a checkpoint or a run.
"""

FAMILIES = {
    "musicgen": "audiolm_jax.families.musicgen",
    "csm": "audiolm_jax.families.csm",
    "qwen3_tts": "audiolm_jax.families.qwen3_tts",
    "soda": "audiolm_jax.families.soda",
}
