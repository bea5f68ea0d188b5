"""Data: recordings -> tokens -> batches.

    corpora/    where recordings and texts come from: synthetic (espeak-ng), folder, tfds, or a module of yours
    encode      recordings -> codes: load ahead in threads, resample, batches of few shapes
    shards      one shard of the token dataset: its utterances, its array_record file, its note
    tokens      the token dataset: written once by any number of processes, read by every run
    schema      its features and JSON files: an ordinary tensorflow-datasets directory
    examples    an utterance of a split -> documents
    batches     documents -> packed rows of fixed shape, per process, resumable

A recording that cannot be used raises `corpora.Reject` and is listed in rejects.jsonl; bad input as a whole raises
`InputError`. Nothing here knows the model.
"""

import logging

from absl import logging as absl


def _other_than_profiling(record: logging.LogRecord) -> bool:
    """Drops what Grain 0.2.18 warns of when `batches` imports it beside an old jaxlib: workers cannot be profiled."""
    return "Grain multiprocess worker profiling requires" not in record.getMessage()


absl.get_absl_logger().addFilter(_other_than_profiling)
