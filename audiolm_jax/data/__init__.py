"""Recordings -> tokens -> batches: corpora/, tokens, shards, encode, batches."""
