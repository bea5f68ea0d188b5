"""Every key there is, with its meaning. Other configurations change a few of these.

audiolm train --config configs/default.py --workdir runs/mine --config.model.layers=6
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    # Of initial weights, data order and training noise. Corpora have a seed of their own.
    config.seed = 0

    # Where audio and text come from.
    config.corpus = ConfigDict(
        {
            # "synthetic" (spoken here by espeak-ng), "folder" (own recordings) or "tfds" (a prepared data set).
            "name": "synthetic",
            # folder: the folder with the recordings. synthetic: where to keep them; "" is below the workdir.
            "path": "",
            # Hz of what the corpus delivers; recordings at another rate are resampled.
            "sample_rate": 16000,
            # Recordings shorter or longer than this many seconds are rejected.
            "min_seconds": 0.3,
            "max_seconds": 30.0,
            # The run stops when more than this share of the recordings is rejected.
            "max_reject_fraction": 0.2,
            # synthetic: "digits" (strings of 3-6 digit words) or "templates" (sentences of about 330 words).
            "level": "digits",
            # synthetic: voices of train, valid and test, and further voices heard only in the split "unseen".
            "speakers": 8,
            "unseen_speakers": 4,
            # synthetic: utterances in each split. No text is in two splits.
            "train": 1800,
            "valid": 100,
            "test": 100,
            "unseen": 40,
            # synthetic: of texts, voices and synthesis; the same seed gives the same samples.
            "seed": 0,
            # synthetic: processes that speak at the same time, and utterances in one resumable shard.
            "workers": 2,
            "shard_size": 256,
            # folder, tfds: shares put in valid and test (by a hash of the name) where no split is given.
            "valid_fraction": 0.05,
            "test_fraction": 0.05,
            # folder, tfds: True rejects recordings without text, False takes them as speech alone.
            "require_text": True,
            # tfds: name of the prepared set, such as "my_set/config:1.0.0", and its folder ("": the default).
            "tfds_name": "",
            "tfds_data_dir": "",
            # tfds: the features that hold audio, text and speaker ("": none; "a/b": feature b inside a).
            "tfds_audio": "audio",
            "tfds_text": "text",
            "tfds_speaker": "",
            # tfds: the feature that holds the sample rate ("": none), and the rate in Hz where there is none.
            "tfds_rate": "",
            "tfds_sample_rate": 16000,
        }
    )

    # What turns waveforms into codes and back.
    config.codec = ConfigDict(
        {
            # "default" (neural, 16 kHz, 25 frames per second), a published one: "encodec", "encodec_stereo" (a mono one
            # for two channels), "dac" or "mimi"; or "tiny" (a toy for tests that needs no weights).
            "name": "default",
            # A folder with config.json and model.safetensors, the latter itself, or a repository owner/name@revision;
            # None: the weights that ship with the package (of "default" alone).
            "path": None,
            # How many codebooks to keep, the coarsest first; None keeps all.
            "codebooks": None,
        }
    )

    # The token data set: recordings as codes.
    config.tokens = ConfigDict(
        {
            # Its name, which tfds.data_source takes.
            "name": "audio_tokens",
            # Recordings in one shard: what is lost at most when writing is interrupted.
            "shard_utterances": 256,
            # Seconds of audio encoded at once; recordings are padded to 2, 4, 8, ... seconds.
            "batch_seconds": 32.0,
            # Threads that load and resample recordings while the codec encodes.
            "workers": 2,
        }
    )

    # Tokens to training batches.
    config.data = ConfigDict(
        {
            # Positions in one row of a batch: the context of the model in training.
            "sequence_length": 1024,
            # Rows in one batch, of all processes and devices together.
            "batch_size": 16,
            # Parts of a batch that are packed apart. With a multiple of the number of processes each packs only its own
            # rows, else those of others too; it is part of what a run is, the number of processes is not.
            "lanes": 1,
            # What the text segment says; {text}, {speaker}, {key} are filled in. "": audio without text.
            "template": "{text}",
            # Weight of predicting text (and where audio begins) in the loss; a code has weight 1.
            "text_weight": 0.0,
            # How often a training view leaves out the text; guidance needs some of these.
            "drop_text": 0.1,
            # How many leading codebooks are used; 0 takes all that the tokens have.
            "codebooks": 0,
            # Frames of the longest audio segment.
            "max_frames": 750,
            # Several documents in one row; False gives each a row of its own.
            "packing": True,
            # Leave out documents that are too long, and say how many; False refuses to train with them.
            "drop_long": False,
            # Another order of the documents in every epoch.
            "shuffle": True,
            # Processes that make the batches of a lane; 0 makes them in a thread.
            "num_workers": 0,
            # Batches made ahead of the training step.
            "prefetch": 4,
        }
    )

    # The order on the codec grid. A strategy refuses options that it has no use for.
    config.serialization = ConfigDict(
        {
            # flat, parallel, delay, coarse_first, hierarchical or masked.
            "strategy": "delay",
            # delay, coarse_first: steps by which each codebook lags, such as (0, 1, 2, 3); () is that.
            "delays": (),
            # masked: passes per codebook when sampling; () is 16, 1, 1, ... (SoundStorm).
            "iterations": (),
            # masked: what is still hidden after a share of the passes: cosine or linear.
            "schedule": "cosine",
            # hierarchical, masked: share of training rows that keep a clean prompt.
            "prompt_fraction": 1.0,
            # hierarchical: share of training rows that train the causal level.
            "causal_fraction": 0.5,
        }
    )

    # The transformer.
    config.model = ConfigDict(
        {
            # Layers, and the width of the residual stream.
            "layers": 4,
            "width": 256,
            # Query heads; key/value heads (a divisor of them); channels of one head (even).
            "heads": 4,
            "kv_heads": 2,
            "head_width": 64,
            # Width of the feed-forward part.
            "ffn": 704,
            # rmsnorm or layernorm.
            "norm": "rmsnorm",
            # What a norm adds to the variance.
            "norm_eps": 1e-6,
            # gated (SwiGLU), plain (GELU, its tanh form) or exact (GELU itself).
            "mlp": "gated",
            # Biases on the matrices of every block.
            "bias": False,
            # rotary, sinusoidal or learned; learned ones need the number of rows, max_positions.
            "positions": "rotary",
            "max_positions": 0,
            # Base of the rotary positions.
            "rope_base": 10000.0,
            # Width of the states of a text encoder that every layer attends to (MusicGen); 0: none.
            "cross_width": 0,
            # Widths of states that stand before the tokens (melody and text of MusicGen-melody); none: ().
            "given_widths": (),
            # Dropout on the output of each attention and feed-forward part, in training.
            "dropout": 0.0,
            # The output matrix is the embedding table.
            "tied": False,
            # Of computation: auto (float32 on a CPU, whatever the batch, so that a request gives the same alone and
            # among others; else bfloat16), float32, bfloat16. Parameters are float32. bfloat16 on a CPU halves the
            # weights of decoding and is faster from four rows up, guidance counted twice; sums are float32.
            "dtype": "auto",
            # Compute activations again in the backward pass instead of keeping them.
            "remat": False,
        }
    )

    # How arrays lie on several devices.
    config.sharding = ConfigDict(
        {
            # data (copies of the model), fsdp (weights sharded), fsdp_tensor (also heads, ffn, vocabulary) or
            # fsdp_context (also the positions of a row, for long audio).
            "preset": "data",
            # fsdp_tensor: devices along the tensor axis; the others go to data.
            "tensor": 1,
            # fsdp_context: devices that share a row; the others go to data.
            "context": 1,
        }
    )

    # AdamW and its schedule.
    config.optimizer = ConfigDict(
        {
            # Learning rate at the peak.
            "learning_rate": 2e-3,
            # cosine, constant, or wsd (stay at the peak, then fall linearly).
            "schedule": "cosine",
            # Steps until the peak.
            "warmup": 20,
            # wsd: the last share of the steps, in which the rate falls.
            "decay_fraction": 0.3,
            # Last learning rate, as a fraction of the peak.
            "final": 0.05,
            # Decay of the averages of gradients and of their squares, and the number that avoids 0/0.
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            # Decoupled, on matrices only.
            "weight_decay": 0.05,
            # Global norm to which gradients are clipped; 0 does not clip.
            "clip": 1.0,
        }
    )

    # How long, how often to tell and to save; intervals in steps.
    config.training = ConfigDict(
        {
            # Updates of the parameters.
            "steps": 200,
            # Parts into which the rows of a batch are split, one after the other.
            "accumulate": 1,
            # Decay of the moving average of the parameters, which is then what inference uses; 0: none.
            "ema": 0.0,
            # Weight of the squared log-normalisers in the loss.
            "z_loss": 0.0,
            # Between lines of metrics, and between checkpoints.
            "log_every": 10,
            "checkpoint_every": 100,
            # Checkpoints kept.
            "keep": 1,
            # Two held-out sentences, spoken by the model as it is, for TensorBoard; 0: none.
            "probe_every": 0,
            # Peak of one device, for the MFU; 0: from a table, or measured.
            "peak_tflops": 0.0,
        }
    )

    # Start from the weights of a published checkpoint instead of random ones (audiolm_jax/finetune.py).
    config.finetune = ConfigDict(
        {
            # The workdir that `audiolm import` made; "": random weights. The model, its order and its codec are then
            # those of that run, for `audiolm prepare` too.
            "base": "",
        }
    )

    # LoRA, for fine-tuning (audiolm_jax/lora.py).
    config.lora = ConfigDict(
        {
            # Of the matrix that is added to each chosen one; 0: no LoRA, all weights are trained.
            "rank": 0,
            # What is added is multiplied by alpha / rank.
            "alpha": 16.0,
            # attention, cross (the attention to the text) and ffn.
            "matrices": ("attention", "cross"),
        }
    )

    # How codes are drawn. temperature, top_k and top_p hold one number, or one per codebook.
    config.sampling = ConfigDict(
        {
            # 0 takes the most likely code.
            "temperature": (1.0,),
            # Only the k most likely codes; 0: all.
            "top_k": (0,),
            # Only the most likely codes that hold this much probability; 1: all.
            "top_p": (1.0,),
            # u + g (c - u), c with and u without the text; 1 is off.
            "guidance": 1.0,
            # Frames of the longest segment, the prompt included; 0: data.max_frames.
            "max_frames": 0,
            # Row b of a request draws from seed + b.
            "seed": 0,
            # Steps in one executable: what a stream waits for.
            "chunk": 32,
            # hierarchical, masked: temperature of codebooks that are made in a single bidirectional pass.
            "one_pass_temperature": 0.0,
            # masked: noise on the ranking of cells by confidence, sinking to 0 within a codebook.
            "confidence_noise": 1.0,
            # masked: share of the temperature that is gone in the last pass of a codebook.
            "anneal": 0.0,
            # masked: of the number of frames; 0 takes the most likely.
            "length_temperature": 0.0,
        }
    )
    # What is measured on a trained run.
    config.evaluation = ConfigDict(
        {
            # Of the token data set: test, unseen (other voices), valid or train.
            "split": "test",
            # audiolm compare: further splits whose likelihood is measured, such as ("unseen",).
            "also": (),
            # Utterances scored by likelihood, spread evenly over the split; 0: all.
            "utterances": 0,
            # masked: "bound" (any order), "exact" (the fixed order), "auto" (bound where there is a choice).
            "method": "auto",
            # Random subsets per utterance and codebook, for the bound.
            "draws": 4,
            # Held-out sentences that are spoken and listened to.
            "sentences": 24,
            # Sentences that are spoken at once.
            "batch": 8,
            # Sentences that are spoken alone, with a clock.
            "timed": 3,
            # Times each of them is clocked, after one that is not.
            "repeats": 3,
            # Sentences to listen to in the report.
            "heard": 4,
            # Weights of the recogniser that listens; "": those that ship with the package.
            "recogniser": "",
        }
    )

    # audiolm compare.
    config.compare = ConfigDict(
        {
            # Each is trained and measured.
            "strategies": ("flat", "delay", "hierarchical", "masked"),
            # Seeds of the runs of every strategy, such as (0, 1, 2); () is the top-level seed alone.
            "seeds": (),
            # Sizes by name, each the changed keys of the section model: {"small": {"layers": 2}, "base": {}}.
            # Empty: one size, that section as it is.
            "sizes": {},
            # flops (every strategy spends the same training FLOPs) or tokens (is shown the same frames of audio, per
            # step and in all: data.batch_size and training.steps are those of the first strategy).
            "equal": "flops",
            # equal flops: training FLOPs of every run; 0: what training.steps steps take.
            "flops": 0.0,
            # Largest difference of parameters, and of what is equal, between strategies, as a fraction.
            "tolerance": 0.05,
        }
    )
    return config
