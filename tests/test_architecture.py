"""The package keeps its floors, sizes and map, and its promise that an import has no effect."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "openblip"
FILES = sorted(SOURCE.rglob("*.py"))

# A room may import from the floors below, from itself, and from its friends of the same floor.
FLOORS = {
    "runtime": 0,
    "model": 0,
    "table": 1,
    "jobs": 1,
    "sources": 1,
    "batches": 1,
    "curation": 1,
    "checkpoints": 1,
    "objectives": 2,
    "metrics": 2,
    "deploy": 2,
    "training": 3,
    "inference": 3,
    "capfilt": 4,
    "evaluation": 4,
    "index": 4,
    "review": 4,
    "recipes": 5,
    "plan": 5,
    "world": 5,
    "comparison": 6,
    "studio": 7,
    "cli": 7,
    "__init__": 8,
    "__main__": 8,
}
# On floor 1 only `checkpoints` knows a model, and `model` draws no progress and no page.
NEVER = {
    *((room, "model") for room in ("table", "jobs", "sources", "batches", "curation")),
    *(("model", f"runtime.{name}") for name in ("progress", "page")),
}
SAME_FLOOR = {
    ("model", "runtime"),
    ("jobs", "table"),
    ("sources", "table"),
    ("sources", "jobs"),
    ("batches", "table"),
    ("batches", "sources"),
    ("curation", "table"),
    ("curation", "sources"),
    ("checkpoints", "batches"),
    ("plan", "recipes"),
    ("world", "recipes"),
    ("cli", "studio"),
}
# Each heavy or optional library is imported by these files alone.
ONE_PLACE = {
    "lance": {"table/versions.py", "table/columns.py"},
    "ray": {"jobs/pools.py"},
    "tokenizers": {"batches/tokenizer.py", "batches/wordpiece.py"},
    "tensorboardX": {"training/metrics_log.py"},
    "torch.distributed": {
        "training/parallelism.py",
        "training/checkpoint.py",
    },
    "rich": {"runtime/progress.py"},
    "huggingface_hub": {"checkpoints/hub.py", "sources/datasets_library.py"},
    "datasets": {"sources/datasets_library.py"},
    "sklearn": {"capfilt/combination.py"},
    "wandb": {"training/trackers.py"},
    "mlflow": {"training/trackers.py"},
    "trackio": {"training/trackers.py"},
    "av": {"batches/video.py"},
    "pillow_heif": {"sources/image_formats.py"},
    "obstore": {"table/storage.py"},
    "botocore": {"table/storage.py"},
    "transformers": {
        "inference/embedder.py",
        "model/library_backbones.py",
        "capfilt/library_captioner.py",
    },
    "httpx": {"capfilt/endpoint.py"},
    "timm": {"model/library_backbones.py"},
    "open_clip": {"inference/embedder.py"},
    "starlette": {"studio/app.py", "studio/guard.py", "studio/routes.py", "cli/studio.py"},
    "uvicorn": {"studio/server.py", "cli/studio.py"},
    "onnx": {"deploy/runtimes.py"},
    "onnxruntime": {"deploy/runtimes.py"},
    "openvino": {"deploy/runtimes.py"},
    "torchvision": set(),
    "fcntl": {"runtime/locks.py"},
}


# Files below 60 lines, each with its reason.
SMALL = {
    "batches/augmentation.py": "a recipe is read without torch",
    "cli/compare.py": "a command a file",
    "cli/convert.py": "a command a file",
    "cli/demo.py": "a command a file",
    "cli/export.py": "a command a file",
    "runtime/interruption.py": "signals are nothing else's subject",
}

# Files that one other imports, by the reason for which each is a subject of its own.
ONE_CALLER = {
    "a page or a command is one file": (
        "evaluation/error_report/caption.py",
        "evaluation/error_report/retrieval.py",
        "evaluation/error_report/vqa.py",
        "studio/capfilt.py",
        "studio/jobs.py",
        "studio/review.py",
        "studio/runs.py",
        "studio/search.py",
        "studio/trying.py",
    ),
    "a format that people have, and look for": (
        "review/spreadsheet.py",
        "sources/annotations.py",
        "sources/export.py",
        "sources/hub_datasets.py",
        "sources/questions.py",
        "sources/sharded.py",
        "sources/split_lists.py",
    ),
    "what a command is about": (
        "comparison/run.py",
        "curation/duplicates.py",
        "curation/leakage.py",
        "index/build.py",
        "plan/sizing.py",
    ),
    "the one caller chooses it by its name, among others": (
        "capfilt/library_captioner.py",
        "objectives/clip.py",
        "objectives/pretrain.py",
        "sources/detect.py",
        "world/chinese.py",
    ),
    "it starts as a process of its own, or runs in one": (
        "capfilt/computer.py",
        "comparison/carry_out.py",
        "studio/processes.py",
    ),
    "with its caller it would be longer than 500 lines, and two subjects": (
        "batches/word_swaps.py",
        "capfilt/combination.py",
        "checkpoints/download.py",
        "comparison/graph.py",
        "index/folder.py",
        "inference/caption_output.py",
        "jobs/driver.py",
        "plan/footprint.py",
        "plan/simulation.py",
        "studio/traces.py",
        "world/build.py",
    ),
}

# What reads again what a file writes: a test, or who the reader is. A writer without a reader is
# one whose files nobody has tried.
PEOPLE = "people read it"
READ_BACK = {
    "batches/image_states.py": (
        "batches/test_image_states.py::test_what_is_known_is_not_computed_again_whoever_asks"
    ),
    "batches/tokenizer.py": "batches/test_tokenizer.py::test_a_saved_tokenizer_reads_back_equal",
    "checkpoints/download.py": (
        "checkpoints/test_download.py::test_an_unfinished_file_is_gone_on_with"
    ),
    "checkpoints/fingerprints.py": "checkpoints/test_fingerprints.py::test_a_file_is_read_once",
    "checkpoints/folder.py": "checkpoints/test_folder.py::test_the_weights",
    "checkpoints/huggingface.py": (
        "checkpoints/test_huggingface_writing.py::test_transformers_reads_the_same_model"
    ),
    "checkpoints/huggingface_processor.py": (
        "checkpoints/test_huggingface_writing.py"
        "::test_transformers_reads_other_languages_tokenizers_alike"
    ),
    "checkpoints/model_card.py": (
        "checkpoints/test_model_card.py::test_what_evaluations_of_this_checkpoint_found_is_told"
    ),
    "checkpoints/original.py": "checkpoints/test_original_files.py::test_what_is_written_is_read",
    "comparison/carry_out.py": (
        "comparison/test_run.py::test_a_second_call_does_nothing_and_says_the_same"
    ),
    "comparison/run.py": (
        "comparison/test_run.py::test_a_stage_that_fails_is_named_with_its_log_and_stops_no_other"
    ),
    "comparison/stages.py": (
        "comparison/test_processes.py::test_threads_of_a_process_wait_without_spinning"
    ),
    "comparison/tables.py": PEOPLE,
    "deploy/runtimes.py": "deploy/test_models.py::test_scores_and_embeddings_are_near",
    "evaluation/java_metrics.py": (
        "evaluation/test_java_metrics.py::test_spice_is_the_mean_over_captions"
    ),
    "evaluation/nlvr.py": (
        "evaluation/test_nlvr.py::test_the_written_file_has_the_metrics_that_are_told"
    ),
    "evaluation/results.py": "evaluation/test_captioning.py::test_results_are_written_as_coco_does",
    "index/states.py": "index/test_states.py::test_what_was_stored_comes_back",
    "inference/caption_output.py": (
        "sources/test_delimited.py::test_what_openblip_caption_wrote_is_read_as_it_was"
    ),
    "inference/explanation.py": PEOPLE,
    "inference/export.py": "deploy/test_models.py::test_the_outline_is_that_of_the_model",
    "jobs/ledger.py": (
        "jobs/test_ledger.py::test_what_is_flushed_is_read_again_and_the_last_word_counts"
    ),
    "model/kernels.py": "model/test_kernels.py::test_the_choice_is_measured_once_on_a_machine",
    "review/sampling.py": "review/test_sampling.py::test_the_same_settings_find_the_same_sample",
    "review/spreadsheet.py": (
        "review/test_spreadsheet.py"
        "::test_what_people_fill_in_is_recorded_in_the_order_of_the_sample"
    ),
    "runtime/atomic.py": "runtime/test_atomic.py::test_a_link_stays_and_leads_to_the_new_file",
    "runtime/locks.py": "runtime/test_locks.py::test_it_can_be_asked_whether_a_path_is_held",
    "runtime/page.py": PEOPLE,
    "runtime/progress.py": (
        "runtime/test_progress.py::test_a_program_reads_in_a_file_how_far_the_job_is"
    ),
    "sources/bucket.py": (
        "sources/test_bucket.py::test_rows_and_report_are_those_of_the_same_files_on_a_disk"
    ),
    "sources/cards.py": (
        "sources/test_export_huggingface.py::test_images_and_texts_are_read_by_the_library"
    ),
    "sources/export.py": "sources/test_export.py::test_an_import_reads_an_export_back",
    "sources/export_formats.py": (
        "sources/test_export.py::test_any_list_of_captions_comes_back_from_every_format"
    ),
    "studio/processes.py": (
        "studio/test_processes.py::test_a_job_is_stopped_found_again_and_stopped_by_a_later_server"
    ),
    "table/columns.py": (
        "table/test_columns.py::test_fragments_are_listed_with_rows_that_keep_their_digest"
    ),
    "table/storage.py": "table/test_storage.py::test_a_folder_of_objects_reads_what_was_written",
    "training/checkpoint.py": "training/test_checkpoint.py::test_a_checkpoint_restores_everything",
    "training/metrics_log.py": (
        "training/test_metrics_log.py::test_a_resumed_run_writes_no_line_twice"
    ),
    "training/rank_log.py": (
        "training/test_rank_log.py::test_a_status_tells_how_far_a_process_is_and_how_it_ended"
    ),
    "training/recipe_file.py": (
        "training/test_recipe_file.py::test_a_written_recipe_is_read_back_equal"
    ),
    "training/run.py": "training/test_run.py::test_an_interrupted_run_ends_as_if_it_had_not_been",
    "training/trackers.py": "training/test_trackers.py::test_a_run_tells_its_tracker_everything",
    "world/build.py": "world/test_build.py::test_images_are_what_their_rows_say",
    "world/demo.py": (
        "world/test_demo.py::test_the_whole_loop_runs_writes_its_pages_and_goes_on_where_it_was"
    ),
}
WRITES = re.compile(
    r"\b(replace_file|replace_folder|agreed_text)\(|\.(write_text|write_bytes)\(|\.open\(\"[wax]"
)

# Rooms whose code is concurrent or numeric, or stores data: there comments say why.
EXPLAINED = (
    *("runtime", "model", "table", "jobs", "sources", "batches", "curation", "checkpoints"),
    *("objectives", "metrics", "deploy", "training", "inference"),
    *("capfilt", "index", "review", "plan"),
)
LEAST_COMMENTS = 4
# What a tool reads, and nobody else.
DIRECTIVE = re.compile(r"#\s*(noqa|type:|fmt:)")
LAYOUT = {
    *(tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).with_suffix("").parts[0]


@cache
def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_go_downwards_only(file: Path) -> None:
    here = room_of(file)
    for name in imports_of(file):
        parts = name.split(".")
        if parts[0] != "openblip" or len(parts) < 2 or parts[1] not in FLOORS:
            continue
        there = parts[1]
        assert not {(here, there), (here, ".".join(parts[1:3]))} & NEVER, f"{here} imports {name}"
        allowed = here == there or (here, there) in SAME_FLOOR or FLOORS[there] < FLOORS[here]
        assert allowed, f"{here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})"


def test_every_room_has_a_floor() -> None:
    assert {room_of(file) for file in FILES} <= set(FLOORS)


@pytest.mark.parametrize("library", ONE_PLACE)
def test_a_heavy_library_is_imported_in_one_place(library: str) -> None:
    users = {
        str(file.relative_to(SOURCE))
        for file in FILES
        if any(n == library or n.startswith(f"{library}.") for n in imports_of(file))
    }
    assert users <= ONE_PLACE[library]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    name = file.relative_to(SOURCE).as_posix()
    lines = text.count("\n")
    assert lines <= 600
    assert lines >= 60 or file.name in ("__init__.py", "__main__.py") or name in SMALL, name
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 80, f"{node.name} is too long"


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_a_file_with_one_caller_has_a_reason() -> None:
    callers = {
        name: {file for file in FILES if module_of(file) != name and name in imports_of(file)}
        for name in map(module_of, FILES)
    }
    lonely = {
        file.relative_to(SOURCE).as_posix()
        for file in FILES
        # A command is called by its name, and a room's first file by all that import the room.
        if file.name not in ("__init__.py", "__main__.py") and room_of(file) != "cli"
        if len(callers[module_of(file)]) < 2
    }
    assert lonely == {name for names in ONE_CALLER.values() for name in names}


def test_what_a_file_writes_is_read_back_by_a_test() -> None:
    writers = {
        file.relative_to(SOURCE).as_posix()
        for file in FILES
        if WRITES.search(file.read_text(encoding="utf-8"))
    }
    assert writers == set(READ_BACK)
    for writer, reader in READ_BACK.items():
        if reader != PEOPLE:
            file, _, name = reader.partition("::")
            assert f"def {name}(" in (ROOT / "tests" / file).read_text("utf-8"), writer


def test_only_a_tokenizer_decides_how_texts_are_cleaned() -> None:
    original = {"openblip.batches.text.clean_caption", "openblip.batches.text.clean_question"}
    assert not [file for file in FILES if original & imports_of(file)]


def code_of(file: Path) -> list[str]:
    """Lines of a file as Python writes them: without imports, docstrings and comments."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            imports_and_docstrings = (ast.Import, ast.ImportFrom)
            node.body = [
                part
                for part in node.body
                if not isinstance(part, imports_and_docstrings)
                and not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ] or [ast.Pass()]
    return [line.strip() for line in ast.unparse(tree).splitlines() if line.strip()]


def test_no_six_lines_stand_twice() -> None:
    seen: dict[tuple[str, ...], str] = {}
    twice = []
    for file in FILES:
        lines = code_of(file)
        for number in range(len(lines) - 5):
            place = f"{file.relative_to(SOURCE)}: {lines[number]}"
            first = seen.setdefault(tuple(lines[number : number + 6]), place)
            if first is not place:
                twice.append(f"{first} and {place}")
    assert twice == []


def comments_and_code(file: Path) -> tuple[int, int]:
    """Lines that are comments, and lines of code: neither blank, nor imports, nor docstrings."""
    text = file.read_text(encoding="utf-8")
    comments, code = 0, set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            is_whole_line = token.line.lstrip().startswith("#")
            comments += is_whole_line and not DIRECTIVE.match(token.string)
        elif token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        constant = node.value if isinstance(node, ast.Expr) else None
        is_docstring = isinstance(constant, ast.Constant) and isinstance(constant.value, str)
        if is_docstring or isinstance(node, ast.Import | ast.ImportFrom):
            code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return comments, len(code)


@pytest.mark.parametrize("room", EXPLAINED)
def test_comments_say_why_often_enough(room: str) -> None:
    counts = [comments_and_code(file) for file in FILES if room_of(file) == room]
    comments, code = (sum(numbers) for numbers in zip(*counts, strict=True))
    assert 100 * comments >= LEAST_COMMENTS * code, f"{comments} comments in {code} lines of code"


def rows_of(page: Path) -> list[list[str]]:
    """The cells of all tables of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|") and not line.startswith("| ---")
    ]


def test_a_newcomer_finds_where_to_change_what_from_the_map() -> None:
    rows = [row for row in rows_of(ROOT / "docs" / "architecture.md") if len(row) == 3]
    answers = [
        row for row in rows if re.fullmatch(r"`[\w/.]+`", row[1]) and re.fullmatch(r"`\w+`", row[2])
    ]
    asked = {
        "the number of beams",
        "the label smoothing",
        "how a tar is read",
        "what an exported card says",
        "the lock of a CapFilt job",
        "the epsilon of a norm",
        "the text of an error page",
        "how a threshold makes a view",
    }
    assert asked <= {row[0] for row in answers}
    for what, place, name in answers:
        where = SOURCE / place.strip("`")
        files = sorted(where.rglob("*.py")) if where.is_dir() else [where]
        assert files, what
        defined = rf"^\s*(def |class )?{name.strip('`')}\b\s*[:=(]"
        assert any(re.search(defined, f.read_text("utf-8"), re.M) for f in files), what


def test_the_map_names_every_room_and_no_file_that_is_not_there() -> None:
    rooms = {row[1].strip("`") for row in rows_of(ROOT / "docs" / "architecture.md")}
    assert {path.name for path in SOURCE.iterdir() if path.is_dir()} - {"__pycache__"} <= rooms
    pages = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    missing = [
        f"{page.name}: {name}"
        for page in pages
        for name in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]*(?:\.py)?)`", page.read_text("utf-8"))
        if name.split("/")[0] in FLOORS and not (SOURCE / name).exists()
    ]
    assert missing == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert not {f.stem for f in FILES} & {"utils", "util", "helpers", "misc", "common"}


def test_the_package_and_its_command_start_without_heavy_libraries() -> None:
    code = (
        "import sys, openblip, openblip.cli;"
        "heavy = {'torch', 'lance', 'pyarrow', 'numpy', 'PIL', 'tyro', 'rich', 'tokenizers',"
        "'huggingface_hub'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_exist_and_are_documented() -> None:
    import openblip

    for name in openblip.__all__:
        assert getattr(openblip, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = openblip.nothing


def test_no_merge_was_left_half_done() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *FILES]
    marks = tuple(mark * 7 + " " for mark in "<>|")
    assert [
        f"{file.relative_to(ROOT)}: {line}"
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith(marks)
    ] == []
