"""Checkpoints of the Hugging Face hub, through its own client.

The only file that imports `huggingface_hub`, and only when it is called. The client's settings
hold: HF_HOME and HF_HUB_CACHE (where files are kept), HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.
"""

import errno
import json
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from openblip.runtime.errors import CheckpointError

# The names of Hugging Face's layout. Those of our own folder are among them, and are not imported
# from there: that loads torch.
_CONFIG_FILE = "config.json"
_SAFETENSORS_FILE = "model.safetensors"
_BIN_FILE = "pytorch_model.bin"
_VOCABULARY_FILE = "vocab.txt"
_TOKENIZER_FILES = ("tokenizer.json", _VOCABULARY_FILE)
# Of the top folder alone; code, other frameworks' weights and training leftovers are not listed.
_SMALL_FILES = (
    _CONFIG_FILE,
    *_TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_SAFETENSORS = (_SAFETENSORS_FILE, "model-*.safetensors", f"{_SAFETENSORS_FILE}.index.json")
_BIN = (_BIN_FILE, "pytorch_model-*.bin", f"{_BIN_FILE}.index.json")

PUBLISHED = {
    "caption": "Salesforce/blip-image-captioning-base",
    "match": "Salesforce/blip-itm-base-coco",
    "ask": "Salesforce/blip-vqa-base",
}
"""Repositories with the base-size models of the paper's authors, by what they do."""
BERT_ROWS = 30524
"""Rows of the word embedding of every released BLIP: BERT's tokens, `[DEC]` and `[ENC]`."""
_ROWS_OF_ALBEF = 30522
# Where a training program padded them to a multiple of so many or more.
_PADDED_TO, _MOST_PADDED_TO = 8, 128
_BERT = "bert-base-uncased"
# The hub moved it under an organisation; caches may have it under either name.
_BERT_NAMES = (_BERT, f"google-bert/{_BERT}")

_LOGIN = "set HF_TOKEN or run `hf auth login`"
_SPACE_WARNING = "Not enough free disk space"
_REPO_PART = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"(?!.*(?:--|\.\.|\.git$)){_REPO_PART}/{_REPO_PART}", re.ASCII)

_Error = TypeVar("_Error", bound=BaseException)


def is_repo_id(source: str) -> bool:
    """True for what the hub could have a repository of: `organisation/name`, without a revision.

    Nothing is asked of the hub or the disk: a relative path of two parts is one too, so that a
    caller has to look for a local file first. The hub's few names without an organisation are not
    taken, because a mistyped file name would be looked for on the hub.
    """
    return _REPO_ID.fullmatch(source) is not None


def split_revision(source: str) -> tuple[str, str | None]:
    """The repository and the revision of `organisation/name@revision`; None where none is given.

    Raises:
        CheckpointError: if nothing stands on one side of the @.
    """
    repo_id, mark, revision = source.partition("@")
    if mark and not (repo_id and revision):
        raise CheckpointError(f"{source}: give a repository and its revision as name@revision")
    return repo_id, revision or None


def fetch_repository(repo_id: str, revision: str | None = None, more: tuple[str, ...] = ()) -> Path:
    """The local folder of a hub repository's model: configuration, weights, tokenizer, processor.

    Of the weights, safetensors are taken, and `pytorch_model.bin` only where there are none. Files
    that are in the cache are not fetched again; with the hub out of reach, a cached model is used
    as it is.

    Args:
        repo_id: as in `organisation/name`.
        revision: branch, tag or commit; the main branch by default.
        more: patterns of files of the top folder that are fetched too, if they are there.

    Raises:
        CheckpointError: if there is no such repository or revision, it may not be read, it holds
            no model, or it is neither cached nor can be fetched.
    """
    name = repo_id if revision is None else f"{repo_id}@{revision}"
    option = "" if revision is None else f" --revision {revision}"
    remedy = (
        f"run it once online, or fetch it with `hf download {repo_id}{option}`; `make demo` "
        "leaves small ones of drawn shapes: demo/captioner, and demo/filter that matches"
    )
    with _as_checkpoint_error(name, remedy), _client_settings():
        folder = _snapshot(repo_id, revision, (*_SAFETENSORS, *more))
        if _missing_weights(folder, _SAFETENSORS_FILE) == _SAFETENSORS_FILE:
            folder = _snapshot(repo_id, revision, (*_BIN, *more))
        if missing := _missing(folder):
            raise CheckpointError(
                f"{name}: no {missing} in it, nor in its cache {folder}; give a repository of a "
                f"BLIP model in PyTorch, or where the hub was out of reach {remedy}"
            )
    return folder


def has_bert_vocabulary(rows: int) -> bool:
    """Whether a word embedding of so many rows is that of BERT's vocabulary, as far as that goes.

    ALBEF has no rows for `[DEC]` and `[ENC]`; some have rows of padding.
    """
    is_padded = rows % _PADDED_TO == 0 and BERT_ROWS < rows < BERT_ROWS + _MOST_PADDED_TO
    return rows in (BERT_ROWS, _ROWS_OF_ALBEF) or is_padded


def fetch_bert_vocabulary() -> Path:
    """The `vocab.txt` of bert-base-uncased, which the released original checkpoints use.

    One in the client's cache is taken without asking the hub: it never changes.

    Raises:
        CheckpointError: if it is neither cached nor can be fetched.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    for name in _BERT_NAMES:
        cached = try_to_load_from_cache(name, _VOCABULARY_FILE)
        if isinstance(cached, str):
            return Path(cached)
    remedy = (
        f"put the {_VOCABULARY_FILE} of {_BERT} beside the checkpoint's file, run it once online, "
        f"or fetch it with `hf download {_BERT} {_VOCABULARY_FILE}`"
    )
    with _as_checkpoint_error(f"{_VOCABULARY_FILE} of {_BERT}", remedy), _client_settings():
        # Unlike `hf_hub_download`, it does not try for half a minute where there is no network.
        folder = snapshot_download(_BERT, allow_patterns=[_VOCABULARY_FILE])
    return Path(folder) / _VOCABULARY_FILE


def _snapshot(repo_id: str, revision: str | None, more: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=[*_SMALL_FILES, *more],
            # A pattern's star matches a slash too.
            ignore_patterns=["*/*"],
        )
    except LocalEntryNotFoundError as error:
        # Out of reach, and the cache lacks files of the listing. Another program may have fetched
        # less than this one would, such as one tokenizer file of two: that is enough.
        cached = getattr(error, "snapshot_path", None)
        if cached is None or _missing(Path(cached)) or not _has_tokenizer(Path(cached)):
            raise
        return Path(cached)
    return Path(folder)


def _missing(folder: Path) -> str | None:
    """The first file that a model cannot do without and that is not there."""
    if not (folder / _CONFIG_FILE).is_file():
        return _CONFIG_FILE
    missing = _missing_weights(folder, _SAFETENSORS_FILE)
    if missing == _SAFETENSORS_FILE:
        missing_bin = _missing_weights(folder, _BIN_FILE)
        return f"{_SAFETENSORS_FILE} or {_BIN_FILE}" if missing_bin == _BIN_FILE else missing_bin
    return missing


def _missing_weights(folder: Path, single: str) -> str | None:
    """`single` if neither it nor an index is there, or the first missing file of the index."""
    if (folder / single).is_file():
        return None
    index = folder / f"{single}.index.json"
    if not index.is_file():
        return single
    try:
        parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no index of weights ({error})") from error
    return next((part for part in parts if not (folder / part).is_file()), None)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


@contextmanager
def _client_settings() -> Iterator[None]:
    """No bars where there is no terminal, and an error instead of a warning when space is short."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    by_user = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    quieten = not (sys.stderr.isatty() or by_user or are_progress_bars_disabled())
    if quieten:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # It is given before the first byte, which beats a full disk after the last but one.
            warnings.filterwarnings("error", message=_SPACE_WARNING)
            yield
    finally:
        if quieten:
            enable_progress_bars()


@contextmanager
def _as_checkpoint_error(name: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    # The client, its HTTP library and its native downloader have no error class in common.
    except Exception as error:
        raise CheckpointError(f"{name}: {_reason(error, remedy)}") from error


def _reason(error: Exception, remedy: str) -> str:
    """What the hub answered, or what went wrong on the way from it or on this machine."""
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    known = {
        errors.GatedRepoError: f"gated; accept its conditions at {hub}, then {_LOGIN}",
        errors.RepositoryNotFoundError: f"no such repository on {hub}, nor a local path; for a "
        f"private one {_LOGIN}",
        errors.RevisionNotFoundError: f"no such revision on {hub}; give a branch, a tag or a "
        "commit of the repository",
        errors.HFValidationError: f"no name of a repository ({_first_line(error)}); give "
        "organisation/name",
        errors.OfflineModeIsEnabled: f"not in the cache {cache}, and HF_HUB_OFFLINE is set; "
        f"{remedy}",
    }
    for kind, said in known.items():
        if _find(error, kind):
            return said
    if answer := _find(error, errors.HfHubHTTPError):
        return f"{hub} {_told_by_status(answer.response.status_code, _first_line(answer))}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        why = _first_line(error.__cause__ or error)
        return f"not in the cache {cache}, and {hub} cannot be reached ({why}); {remedy}"
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or str(error).startswith(_SPACE_WARNING):
        return (
            f"no space for it in {cache} ({_first_line(error)}); make room, or set HF_HOME to a "
            "folder on another disk"
        )
    if number is not None:
        return f"the cache {cache} cannot be used ({error}); or set HF_HOME"
    return (
        f"the download broke off ({_first_line(error)}); files that are complete are kept, run "
        "the same again"
    )


def _told_by_status(status: int, said: str) -> str:
    if status in (401, 403):
        return f"denies access (status {status}); check the token: {_LOGIN}"
    if status == 429:
        return f"has had too many requests (status {status}); wait, or {_LOGIN}"
    if status >= 500:
        return f"has an error of its own (status {status}); try again later"
    return f"answers with status {status} ({said})"


def _find(error: BaseException | None, kind: type[_Error]) -> _Error | None:
    """The error of a kind in a chain of causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
