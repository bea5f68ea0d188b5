"""Checkpoints of a run (orbax), its parameters for inference, and safetensors in and out.

    WORKDIR/config.json                  configuration of the run
    WORKDIR/checkpoints/STEP/params      parameters for inference: the moving average if there is one
    WORKDIR/checkpoints/STEP/state       what else training needs: optimizer, key, counters
    WORKDIR/checkpoints/STEP/position    position of the data iterator of each process, seconds trained
    WORKDIR/checkpoints/STEP/about       the `Spec` of the model

A checkpoint is written under a temporary name and renamed, so that a run killed while writing resumes from the one
before. Runs resume from the latest checkpoint.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from audiolm_jax import files
from audiolm_jax.errors import InputError, listed, shortened
from audiolm_jax.model import sharding, versions
from audiolm_jax.model.config import ModelConfig
from audiolm_jax.model.spec import Spec, from_json
from audiolm_jax.model.transformer import Transformer, language_model
from audiolm_jax.serialization.vocab import Vocab

if TYPE_CHECKING:  # imported where it is used: a safetensors file needs none of it, and it takes as long as numpy
    import orbax.checkpoint as ocp

FOLDER = "checkpoints"
DAMAGED = "it may be damaged, or of a newer version"
SIZES = ("layers", "width", "heads", "kv_heads", "head_width", "ffn", "cross_width", "state_widths", "max_positions")
SIZES += ("cross_heads", "cross_kv_heads", "cross_head_width")
DEPTH_SIZES = ("layers", "width", "heads", "kv_heads", "head_width", "ffn", "schedule")
FREE_AFTER = 2 << 20  # bytes that must stay free on the disk after a checkpoint


def _open(directory: Path, **options: Any) -> "ocp.CheckpointManager":
    import orbax.checkpoint as ocp

    arrays, plain = ocp.StandardCheckpointHandler, ocp.JsonCheckpointHandler
    handlers = {"params": arrays(), "state": arrays(), "position": plain(), "about": plain()}
    options = ocp.CheckpointManagerOptions(**options)
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _folder(workdir: str | Path) -> Path:
    """The folder of a run's checkpoints, on this machine or at an address such as gs://bucket/run."""
    root = files.place(workdir)
    return (root if files.remote(root) else Path(os.path.realpath(root))) / FOLDER


@contextlib.contextmanager
def manager(workdir: Path, keep: int = 1) -> Iterator["ocp.CheckpointManager"]:
    """The orbax manager of a run; pending writes are finished at the end of the block."""
    directory = _folder(workdir)
    with _open(directory, max_to_keep=keep, cleanup_tmp_directories=True) as opened:
        yield opened
        with files.writing(directory):
            opened.wait_until_finished()


def save(opened: "ocp.CheckpointManager", step: int, params: Any, state: Any, position: dict, spec: Spec) -> None:
    """Writes checkpoint `step`, unless it exists; returns when the arrays are copied to the host, not yet written.

    Raises InputError if the disk is full or not writable; earlier checkpoints are untouched then.
    """
    import orbax.checkpoint as ocp

    if step in opened.all_steps():
        return
    needed = sum(x.nbytes for x in jax.tree.leaves((params, state)))
    free = math.inf if files.remote(opened.directory) else shutil.disk_usage(opened.directory).free
    if free < needed + FREE_AFTER:  # checked here: orbax would fail in threads of its own, some steps later
        raise InputError(
            f"{opened.directory}: the disk is full, {free / 1e6:.1f} MB are free and checkpoint {step} takes "
            f"{needed / 1e6:.1f} MB; nothing written before is lost: make room and run the same command again"
        )
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        state=ocp.args.StandardSave(state),
        position=ocp.args.JsonSave(position),
        about=ocp.args.JsonSave(spec.to_json()),
    )
    with files.writing(opened.directory):
        opened.save(step, args=items)


def restore(opened: "ocp.CheckpointManager", step: int, params: Any, state: Any) -> tuple[Any, Any, dict]:
    """Checkpoint `step` -> (params, state, position), sharded like these abstract trees; params None is not read.

    Raises InputError naming every array that is missing, unexpected or of another shape.
    """
    import orbax.checkpoint as ocp

    where = opened.directory / str(step)
    with files.reading(where, "a checkpoint", remedy=DAMAGED):
        metadata = opened.item_metadata(step)
        if "state" not in metadata:
            raise InputError(f"{where} holds weights alone, for inference: training cannot resume from it")
        trees = {"state": state} if params is None else {"params": params, "state": state}
        for name, tree in trees.items():
            check_tree(tree, metadata[name], f"{where}/{name}")
        items = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        restored = opened.restore(step, args=ocp.args.Composite(position=ocp.args.JsonRestore(), **items))
        position = restored["position"]
        if not isinstance(position, dict):
            raise TypeError("its position is no object")
    return restored.get("params"), restored["state"], position


def save_weights(workdir: Path, params: Any, spec: Spec) -> None:
    """A checkpoint 0 of weights alone: for inference, training cannot resume from it.

    Raises InputError if there is a checkpoint already.
    """
    import orbax.checkpoint as ocp

    with manager(workdir) as opened:
        if opened.all_steps():
            raise InputError(f"{workdir} has a checkpoint already; give another folder")
        items = ocp.args.Composite(params=ocp.args.StandardSave(params), about=ocp.args.JsonSave(spec.to_json()))
        with files.writing(opened.directory):
            opened.save(0, args=items)


def check_tree(expected: Any, actual: Any, where: str) -> None:
    """Compares the shapes of two trees by key path. Raises one InputError that lists all differences."""

    def leaves(tree: Any) -> dict[str, Any]:
        return {key_path(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}

    want, have = leaves(expected), leaves(actual)
    both = sorted(want.keys() & have.keys())
    shapes = {key: (tuple(have[key].shape), tuple(want[key].shape)) for key in both}
    problems = [
        [f"{key} is missing" for key in sorted(want.keys() - have.keys())],
        [f"{key} is unexpected" for key in sorted(have.keys() - want.keys())],
        [f"{key} is {has} where {needed} is needed" for key, (has, needed) in shapes.items() if has != needed],
        [f"{key} holds {have[key].dtype} where floats are needed" for key in both if _no_floats(want[key], have[key])],
    ]
    if any(problems):
        said = "; ".join(listed(kind) for kind in problems if kind)
        raise InputError(f"{where} holds another model: {said}; give the config it was trained with")


def key_path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _no_floats(expected: Any, actual: Any) -> bool:
    types = [getattr(x, "dtype", None) for x in (expected, actual)]
    return None not in types and [jnp.issubdtype(dtype, jnp.floating) for dtype in types] == [True, False]


def check_sizes(spec: Spec, tree: Any, where: str) -> None:
    """Raises InputError for a size in a description that is larger than the number of all parameters: before anything
    is made of it."""
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    parts = {"model": (spec.model, SIZES), "vocab": (spec.vocab, [field.name for field in dataclasses.fields(Vocab)])}
    if spec.model.depth is not None:
        parts["depth"] = (spec.model.depth, DEPTH_SIZES)
    for part, (values, names) in parts.items():
        for name in names:
            value = getattr(values, name)
            if max(value if isinstance(value, tuple) else (value,), default=0) > count:
                raise InputError(
                    f"{where}: the description of the model has {part}.{name}={shortened(str(value), 40)}, but there "
                    f"are {count} numbers in its parameters; it is damaged"
                )


def abstract_model(config: ModelConfig, vocab: Vocab, rules: sharding.Rules = sharding.PRESETS["data"]) -> Transformer:
    """The model as shapes with shardings. A mesh is entered."""
    return jax.eval_shape(lambda: language_model(config, vocab, None, rules))


def count_parameters(config: ModelConfig, vocab: Vocab) -> int:
    """The number of parameters of a model, from shapes alone."""
    with jax.set_mesh(sharding.single_device_mesh()):
        return sum(x.size for x in jax.tree.leaves(nnx.state(abstract_model(config, vocab), nnx.Param)))


def digest(*trees: Any) -> str:
    """Sha256 over the arrays of trees, by their key paths."""
    hashed = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(trees):
        hashed.update(key_path(path).encode())
        hashed.update(np.ascontiguousarray(x).data)
    return hashed.hexdigest()


def params_of(model: Transformer) -> dict:
    """The parameters as a plain nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@contextlib.contextmanager
def _opened(workdir: str | Path, step: int | None) -> Iterator[tuple["ocp.CheckpointManager", int, Spec]]:
    """The manager of a run, the step of a checkpoint (None: the latest) and its Spec.

    Raises InputError if there is no such checkpoint.
    """
    import orbax.checkpoint as ocp

    directory = _folder(workdir)
    if not directory.is_dir():
        raise InputError(f"{workdir} is not the folder of a training run: it has no folder {FOLDER}")
    with contextlib.ExitStack() as stack:
        with files.reading(directory, "the checkpoints of a run", remedy=DAMAGED):
            m = stack.enter_context(_open(directory, create=False))
            steps = m.all_steps()
            step = m.latest_step() if step is None else step
        if step not in steps:
            raise InputError(
                f"{directory} has no checkpoint{'' if step is None else f' of step {step}'}; found: {steps}"
            )
        where = directory / str(step) / "about"
        with files.reading(where, "the description of a model", remedy=DAMAGED):
            values = m.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        yield m, step, from_json(values, where)


def read_spec(workdir: str | Path) -> Spec:
    """The Spec in the latest checkpoint of a run. Raises InputError if there is none."""
    with _opened(workdir, None) as (_, _, spec):
        return spec


def restore_params(
    workdir: str | Path,
    step: int | None = None,
    rules: sharding.Rules = sharding.PRESETS["data"],
    **model_changes: Any,
) -> tuple[Transformer, Spec]:
    """The trained model of a run on the current mesh (without one: on one device), and its Spec.

    step: None for the latest. rules: its sharding. model_changes: fields of ModelConfig that do not change the
    weights (dtype). Raises InputError if there is no checkpoint, it does not fit, or is not finite.
    """
    import orbax.checkpoint as ocp

    with _opened(workdir, step) as (m, step, spec):
        where = f"{_folder(workdir) / str(step)}/params"

        def load(abstract: dict) -> dict:
            wanted = abstract  # under the names in the checkpoint
            if any(re.match(r"given\d", name) for name in metadata):
                wanted = _rename(abstract, "states", "given")
            check_tree(wanted, metadata, where)
            params = m.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(wanted)))["params"]
            return _rename(params, "given", "states")

        with files.reading(where, "the parameters of a model", remedy=DAMAGED):
            metadata = m.item_metadata(step)["params"]
            check_sizes(spec, metadata, where)
            return _build(spec, load, model_changes, rules, _folder(workdir) / str(step)), spec


def export_safetensors(workdir: str | Path, path: str | Path, step: int | None = None, dtype: str = "float32") -> None:
    """Writes the parameters for inference of a run to one file; see `save_safetensors`."""
    model, spec = restore_params(workdir, step)
    from audiolm_jax.serialization import pieces  # late: training needs none of it

    save_safetensors(path, model, spec, dtype, pieces.of_model(spec.text, files.place(workdir)).metadata)


def save_safetensors(
    path: str | Path, model: Transformer, spec: Spec, dtype: str = "float32", text: dict[str, str] | None = None
) -> None:
    """Writes parameters under their `/`-joined key paths, with the Spec as metadata.

    dtype: float32, or float16 for half the size; `load_safetensors` makes float32 of either. text: `Texts.metadata` of
    a model whose text is pieces.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params_of(model))
    tensors = {key_path(path): np.asarray(x, dtype) for path, x in leaves}
    with files.writing(path):
        files.write_safetensors(path, tensors, {"about": json.dumps(spec.to_json())} | (text or {}))


def load_safetensors(
    path: str | Path, rules: sharding.Rules = sharding.PRESETS["data"], **model_changes: Any
) -> tuple[Transformer, Spec]:
    """A file of `save_safetensors` -> (model, Spec); see `restore_params`."""
    tensors, metadata = files.read_safetensors(path)
    if "about" not in metadata:
        raise InputError(f"{path} has no description of its model (metadata key 'about'); export it with this package")
    spec = from_json(files.parse_json(metadata["about"], path), path)
    check_sizes(spec, tensors, str(path))

    def load(abstract: dict) -> dict:
        params = _rename(unflatten_dict(tensors, sep="/"), "given", "states")
        check_tree(abstract, params, str(path))
        return jax.tree.map(lambda like, x: jax.device_put(x.astype(like.dtype), like.sharding), abstract, params)

    with files.reading(path, "a model", remedy=DAMAGED):
        return _build(spec, load, model_changes, rules, path), spec


def _build(spec: Spec, load: Any, model_changes: dict, rules: sharding.Rules, where: Any) -> Transformer:
    """The model of `spec` with the parameters that `load` makes of abstract ones.

    Raises InputError naming `where` they were read if one of them is not finite.
    """
    config = dataclasses.replace(spec.model, **model_changes)
    entered = not jax.sharding.get_abstract_mesh().empty
    with contextlib.nullcontext() if entered else jax.set_mesh(sharding.single_device_mesh()):
        mesh = versions.mesh()
        graph, abstract = nnx.split(abstract_model(config, spec.vocab, rules))
        params = load(sharding.on_mesh(nnx.to_pure_dict(abstract), mesh))
        for path, x in jax.tree_util.tree_leaves_with_path(params):
            if x.is_fully_addressable and not np.isfinite(np.asarray(x)).all():
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise InputError(f"{where}: {name} holds values that are not finite; give an earlier checkpoint")
        return nnx.merge(graph, params)


def _rename(params: dict, before: str, after: str) -> dict:
    """Parameters with `after` for `before` in front of a number: until November 2026 states0_WD was given0_WD."""
    return {re.sub(rf"^{before}(?=\d)", after, name): x for name, x in params.items()}


def pack_position(iterator_state: Any) -> str:
    """A data iterator's state (plain JSON values or bytes) as text."""
    if isinstance(iterator_state, bytes):
        return json.dumps({"bytes": base64.b64encode(iterator_state).decode()})
    return json.dumps({"json": iterator_state})


def unpack_position(text: str) -> Any:
    value = json.loads(text)
    return base64.b64decode(value["bytes"]) if "bytes" in value else value["json"]
