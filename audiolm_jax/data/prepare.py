"""From a configuration to a token data set: what `audiolm prepare` does.

DATA/corpus    the synthetic corpus, if that is what is used
DATA/tokens    the token data set, rejects.jsonl, and pieces-SIZE.json, the pieces trained on the texts to train on
DATA/corpus.json    the section corpus, which leads back to the recordings
"""

import dataclasses
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from audiolm_jax import codecs, files, locks
from audiolm_jax import config as configs
from audiolm_jax.data import corpora, tokens

CORPUS = "corpus.json"


def utterances(config: ConfigDict, directory: Path, progress: bool = True, codec=None) -> list[corpora.Utterance]:
    """The recordings of the configured corpus as its codec hears them; a synthetic one is made below `directory` first.

    codec: that of the configuration if it is loaded already.
    """
    corpus = configs.section(config, "corpus")
    if corpus.sample_rate is None or corpus.channels is None:
        corpus = corpora.for_codec(corpus, codec or codecs.load(**config.codec))
    return corpora.utterances(corpus, directory / "corpus", progress)


def prepare(config: ConfigDict, directory: Path, progress: bool = True) -> dict:
    """Corpus and tokens below `directory`; returns the metadata of the token data set (`tokens.info`).

    Several processes with one folder share the work: one makes a synthetic corpus, all encode.

    Raises InputError for a corpus that cannot be used, a folder of another corpus or codec, a full disk.
    """
    codec, corpus = codecs.load(**config.codec), configs.section(config, "corpus")
    if said := corpora.converted(corpus, codec):
        logging.warning("%s", said)
    recordings: list[corpora.Utterance] = []
    lock = directory / "corpus.lock"
    locks.share({"corpus": lock}, lambda _: recordings.extend(utterances(config, directory, progress, codec)))
    lock.unlink(missing_ok=True)
    path = str(Path(corpus.path).expanduser().resolve()) if corpus.path else ""
    files.write_json(directory / CORPUS, {**dataclasses.asdict(corpora.for_codec(corpus, codec)), "path": path})
    tokens.write(recordings, codec, directory / "tokens", configs.section(config, "tokens"), corpus, progress)
    text = configs.section(config, "text")
    if text.size:
        from audiolm_jax.serialization import pieces  # late: bytes need no tokenizer

        words = sorted(item.text for item in recordings if item.split == "train")
        locks.share({"pieces": directory / "pieces.lock"}, lambda _: pieces.train(words, directory, text.size))
        (directory / "pieces.lock").unlink(missing_ok=True)
    return tokens.info(directory / "tokens")
