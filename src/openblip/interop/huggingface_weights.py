"""Weight files of the Hugging Face layout: one file, or shards with an index."""

from pathlib import Path

from torch import Tensor

from openblip.errors import CheckpointError
from openblip.interop.assembly import check_names, read_safetensors
from openblip.interop.folder import WEIGHTS_FILE, read_json
from openblip.interop.pickled import read_state
from openblip.interop.wrappers import plain_names

_PICKLE_FILE = "pytorch_model.bin"
_INDEX_ENDING = ".index.json"
# The first that is there is read.
_FILES = (
    WEIGHTS_FILE,
    WEIGHTS_FILE + _INDEX_ENDING,
    _PICKLE_FILE,
    _PICKLE_FILE + _INDEX_ENDING,
)
_REMEDY = "fetch the file again, or save the model as model.safetensors"


def find_weights(folder: Path) -> Path:
    """The weights of a folder: a file, or the index of its shards.

    Raises:
        CheckpointError: if there are none.
    """
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: holds no weights; expected one of {', '.join(_FILES)}")


def read_weights(weights: Path) -> dict[str, Tensor]:
    """Every tensor of what `find_weights` found, memory-mapped; no code of a file is run.

    Raises:
        CheckpointError: if a file is missing, damaged, or not what the index says.
    """
    if not weights.name.endswith(_INDEX_ENDING):
        return plain_names(_read_file(weights), str(weights))
    index = _index(weights)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(index.values())):
        shard = weights.parent / name
        if not shard.is_file():
            raise CheckpointError(
                f"{shard}: no such file, but {weights.name} names it; fetch the missing shard"
            )
        found = _read_file(shard)
        check_names({key for key, file in index.items() if file == name}, set(found), str(shard))
        tensors |= found
    return plain_names(tensors, str(weights))


def _index(path: Path) -> dict[str, str]:
    """The shard of every key."""
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{path}: weight_map is no object with keys; fetch the file again")
    for key, name in index.items():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise CheckpointError(
                f"{path}: {key} is said to be in {name!r}, expected a file of the same folder; "
                "files elsewhere are not read"
            )
    return index


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_state(path, _REMEDY)
