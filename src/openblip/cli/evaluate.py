"""`openblip evaluate TASK`; `classify` and `video` are tasks for which nothing was trained."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from openblip.cli.flags import Backend, takes
from openblip.cli.output import (
    check_outputs,
    dominant_json,
    print_dominant,
    print_json,
    print_table,
)
from openblip.evaluation.settings import (
    CaptionSettings,
    ClassificationSettings,
    NlvrSettings,
    RetrievalSettings,
    VideoQaSettings,
    VideoSettings,
    VqaSettings,
)
from openblip.inference.decoding import Decoding
from openblip.runtime.ranges import Count

if TYPE_CHECKING:
    from openblip.evaluation.results import UnitScores
    from openblip.table.table import PairTable


@takes(RetrievalSettings)
def retrieval(
    model: tyro.conf.Positional[str],
    table: tyro.conf.Positional[str],
    /,
    *,
    split: str = "test",
    settings: RetrievalSettings,
    results: Path | None = None,
    report: Path | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """Recall of texts and images on a split of a table, by contrast and then by matching.

    Example: openblip evaluate retrieval runs/new pairs.lance --split test --k 128

    Args:
        model: model folder, run directory, file, https address or hub repository; also a CLIP of
            transformers, or open_clip:ARCHITECTURE/PRETRAINED.
        table: pair table with human captions in the split.
        split: which rows.
        settings: the flags of the protocol.
        results: write the first candidates of every image and of every text there, as JSON.
        report: write a page there (HTML) that shows the worst searches and the calibration.
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO.
        json: print JSON.
    """
    from openblip.checkpoints.reading import with_backend
    from openblip.evaluation.error_report.retrieval import write_retrieval_report
    from openblip.evaluation.retrieval import evaluate_retrieval
    from openblip.inference.embedder import load_embedder
    from openblip.table.table import PairTable

    check_outputs({"--results": results, "--report": report})
    opened = PairTable.open(table)
    found = evaluate_retrieval(
        load_embedder(with_backend(model, backend)), opened, split=split, **vars(settings)
    )
    if settings.weigh_on is not None and found.match_weight is None:
        told = f"{model} does not match: contrast alone ranks, and --weigh-on weighs nothing"
        print(told, file=sys.stderr)
    # As notes of before there was a weight, where there is none.
    about = {name: value for name, value in vars(settings).items() if name != "weigh_on"}
    if settings.weigh_on is not None:
        about |= {"weigh_on": settings.weigh_on, "match_weight": found.match_weight}
    _note("retrieval", model, backend, opened.uri, split, about, found.metrics)
    if results is not None:
        found.rankings.save(results)
    if report is not None:
        write_retrieval_report(found, opened, report, subject=f"{model}, split {split}")
    if json:
        names = ("metrics", "contrastive", "num_images", "num_texts", "k", "seconds")
        print_json(_of(found, *names, *(["match_weight"] if settings.weigh_on else [])))
        return 0
    print(f"{found.num_images} images, {found.num_texts} texts, {found.seconds:.0f} s")
    if found.match_weight is not None:
        print(f"the log-odds of the match count {found.match_weight:.2f} (on {settings.weigh_on})")
    shown = ["TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "mean"]
    matched = found.metrics if found.pairs.itm is not None else None
    _print_rankings(shown, found.contrastive, matched, found.k)
    return 0


@takes(CaptionSettings)
def caption(
    model: tyro.conf.Positional[str],
    table: tyro.conf.Positional[str],
    /,
    *,
    split: str = "test",
    settings: CaptionSettings,
    results: Path | None = None,
    report: Path | None = None,
    java_metrics: Path | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """BLEU, ROUGE-L and CIDEr of a model's captions on a split of a table.

    Where rows have a `domain` in their metadata, as those of NoCaps, also by domain.
    Example: openblip evaluate caption runs/captioner pairs.lance --results captions.json

    Args:
        model: model folder, run directory, file, https address or hub repository.
        table: pair table with human captions in the split.
        split: which rows.
        settings: the flags of the protocol, and of how words are chosen.
        results: write the captions there as a COCO results file.
        report: write a page there (HTML) that shows the worst captions and what words they overuse.
        java_metrics: add METEOR, and SPICE if its language models are there, by the Java programs
            in this folder, which is laid out as the package pycocoevalcap; by default the
            environment variable OPENBLIP_JAVA_METRICS names it.
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO.
        json: print JSON.
    """
    from openblip.evaluation.captioning import evaluate_caption
    from openblip.evaluation.error_report.caption import write_caption_report
    from openblip.evaluation.java_metrics import JavaPrograms
    from openblip.inference.loading import load
    from openblip.table.table import PairTable

    check_outputs({"--results": results, "--report": report})
    folder = java_metrics or _folder_named("OPENBLIP_JAVA_METRICS")
    # Before the captions are written, which takes long.
    java = JavaPrograms.find(folder) if folder is not None else None
    if java is not None and java.spice_lacks:
        print(f"SPICE is left out: there is no {java.spice_lacks[0]}", file=sys.stderr)
    opened = PairTable.open(table)
    written = evaluate_caption(
        load(model, backend=backend),
        opened,
        split=split,
        java=java,
        **vars(settings),
    )
    told = _told(settings)
    _note("caption", model, backend, opened.uri, split, told, _in_percent(written.metrics))
    if results is not None:
        written.save_coco(results)
    if report is not None:
        write_caption_report(written, opened, report, subject=f"{model}, split {split}")
    if json:
        values = _of(written, "metrics", "domains", "num_images")
        print_json(values | dominant_json(written.dominant))
        return 0
    print_dominant(written.dominant)
    print(f"{written.num_images} images, {written.seconds:.0f} s")
    rows = {"all": written.metrics, **written.domains}
    print_table(
        ["images", *written.metrics],
        [[name, *(_percent(own.get(of)) for of in written.metrics)] for name, own in rows.items()],
    )
    return 0


_FURTHER_RULES = frozenset(
    ("top_k", "repetition_penalty", "no_repeat_ngram_size", "length_penalty", "scoring")
)


def _told(settings: CaptionSettings) -> dict[str, Any]:
    """What a model's card says of how captions were written: what decides them, in its words."""
    rule = settings.decoding
    told: dict[str, Any] = {"tokens": f"{rule.min_length} to {rule.max_length}"}
    told["prompt"] = settings.prompt
    told = (
        {"beams": rule.num_beams, **told}
        if rule.method == "beam"
        else {"decoding": rule.method, **told}
    )
    if rule.method == "nucleus":
        told |= {"top_p": rule.top_p, "seed": settings.seed}
    # A figure of other rules is another one, and must not take the place of that of the plain ones.
    plain = vars(Decoding())
    return told | {
        name: value
        for name, value in vars(rule).items()
        if name in _FURTHER_RULES and value != plain[name]
    }


def _in_percent(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in metrics.items()}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _folder_named(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


@takes(VqaSettings)
def vqa(
    model: tyro.conf.Positional[str],
    table: tyro.conf.Positional[str],
    /,
    *,
    split: str = "test",
    candidates: str | None = None,
    min_count: Count = 1,
    settings: VqaSettings,
    results: Path | None = None,
    report: Path | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """Accuracy of answers to the questions of a split: that of VQA v2 where there are ten answers.

    Example: openblip evaluate vqa runs/vqa pairs.lance --candidates train --results answers.json

    Args:
        model: model folder, run directory, file, https address or hub repository.
        table: pair table with questions in its rows' metadata.
        split: which rows.
        candidates: rank the answers of this file (one a line, or a list in JSON), or "train" for
            those of the table's training questions; by default the model writes its answers.
        min_count: of "train", answers to at least so many questions.
        settings: the flags of the protocol.
        results: write the answers there in the form of the VQA challenge's server.
        report: write a page there (HTML) that shows accuracy by type, confusions, worst answers.
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO.
        json: print JSON.
    """
    from openblip.batches.questions import frequent_answers, read_answers
    from openblip.evaluation.error_report.vqa import write_vqa_report
    from openblip.evaluation.vqa import evaluate_vqa
    from openblip.inference.loading import load
    from openblip.table.table import PairTable

    check_outputs({"--results": results, "--report": report})
    opened = PairTable.open(table)
    if report is not None:
        _check_answers_known(opened, split)
    ranked = None
    if candidates == "train":
        ranked = frequent_answers(opened, "train", min_count)
    elif candidates is not None:
        ranked = read_answers(Path(candidates))
    asked = vars(settings) | {"candidates": ranked}
    found = evaluate_vqa(load(model, backend=backend), opened, split=split, **asked)
    told = vars(settings) | {"candidates": candidates and Path(candidates).name}
    told |= {"min_count": min_count}
    _note("vqa", model, backend, opened.uri, split, told, found.metrics)
    if results is not None:
        found.save_results(results)
    if report is not None:
        write_vqa_report(found, opened, report, subject=f"{model}, split {split}")
    if json:
        _print_judged_json(found, "num_images", "num_questions")
        return 0
    subject = f"{found.num_questions} questions about {found.num_images} images"
    _print_answered(found, subject, ranked, where=" in this split", results=results)
    return 0


def _check_answers_known(table: "PairTable", split: str) -> None:
    """Misses them before the questions are answered, which takes long."""
    from openblip.batches.questions import QuestionIndex
    from openblip.runtime.errors import DataError

    try:
        QuestionIndex.resolve(table, split)
    except DataError as error:
        raise DataError(f"--report: {error}") from error


@takes(VideoQaSettings)
def videoqa(
    model: tyro.conf.Positional[str],
    questions: tyro.conf.Positional[Path],
    videos: tyro.conf.Positional[Path],
    /,
    *,
    settings: VideoQaSettings,
    candidates: Path | None = None,
    results: Path | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """Accuracy of answers about videos by a model that learnt from images; needs the extra video.

    Example: openblip evaluate videoqa runs/vqa msrvtt_qa_test.json MSRVTT/videos

    Args:
        model: model folder, run directory, file, https address or hub repository.
        questions: JSON lines, or a JSON list, with video_id, question and answer, as of MSRVTT-QA.
        videos: folder of the clips.
        candidates: rank the answers of this file (one a line, or a list in JSON); by default the
            model writes its answers.
        settings: the flags of the protocol.
        results: write the answers there, as .csv or .json.
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO.
        json: print JSON.
    """
    from openblip.batches.questions import read_answers
    from openblip.batches.video import read_clip_questions
    from openblip.evaluation.video import evaluate_videoqa
    from openblip.inference.loading import load

    _check_records(results)
    ranked = None if candidates is None else read_answers(candidates)
    asked = vars(settings) | {"candidates": ranked}
    found = evaluate_videoqa(
        load(model, backend=backend), read_clip_questions(questions, videos), **asked
    )
    told = vars(settings) | {"candidates": candidates and candidates.name}
    _note("videoqa", model, backend, str(questions), "", told, found.metrics)
    _save_records(results, found.answers)
    if json:
        _print_judged_json(found, "num_videos", "num_questions", "seconds")
        return 0
    subject = (
        f"{found.num_questions} questions about {found.num_videos} videos, "
        f"{settings.num_frames} frames"
    )
    _print_answered(found, subject, ranked, where="", results=results)
    return 0


@takes(NlvrSettings)
def nlvr(
    model: tyro.conf.Positional[str],
    table: tyro.conf.Positional[str],
    /,
    *,
    split: str = "test",
    settings: NlvrSettings,
    results: Path | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """Accuracy of telling whether sentences are true of two images, and consistency (NLVR2).

    Example: openblip evaluate nlvr runs/nlvr pairs.lance --split val --results predictions.csv

    Args:
        model: model folder, run directory, file, https address or hub repository.
        table: pair table with sentences about two images in its rows' metadata.
        split: which rows.
        settings: the flags of the protocol.
        results: write the predictions there as NLVR2's evaluation reads them (CSV).
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO.
        json: print JSON.
    """
    from openblip.evaluation.nlvr import evaluate_nlvr
    from openblip.inference.loading import load
    from openblip.table.table import PairTable

    check_outputs({"--results": results})
    found = evaluate_nlvr(
        load(model, backend=backend), PairTable.open(table), split=split, **vars(settings)
    )
    _note("nlvr", model, backend, table, split, vars(settings), found.metrics)
    if results is not None:
        found.save_official(results)
    if json:
        _print_judged_json(found, "num_pairs", "seconds")
        return 0
    print_dominant(found.dominant)
    print(f"{found.num_pairs} sentences about two images, {found.seconds:.0f} s")
    _print_accuracies("", found.metrics, found.units)
    return 0


@takes(ClassificationSettings)
def classify(
    model: tyro.conf.Positional[str],
    table: tyro.conf.Positional[str],
    /,
    *,
    split: str = "test",
    settings: ClassificationSettings,
    results: Path | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """Accuracy of naming the classes of images by prompts, without training for it.

    Example: openblip evaluate classify runs/new xrays.lance --exclude todo
    --templates "an X-ray of {}"

    Args:
        model: model folder, run directory, file, https address or hub repository; also a CLIP of
            transformers, or open_clip:ARCHITECTURE/PRETRAINED.
        table: pair table whose rows have a label in their metadata.
        split: which rows.
        settings: the flags of the protocol.
        results: write the predictions there, as .csv or .json.
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO.
        json: print JSON.
    """
    from openblip.checkpoints.reading import with_backend
    from openblip.evaluation.classification import evaluate_classification
    from openblip.inference.embedder import load_embedder
    from openblip.table.table import PairTable

    _check_records(results)
    found = evaluate_classification(
        load_embedder(with_backend(model, backend)),
        PairTable.open(table),
        split=split,
        **vars(settings),
    )
    _note("classify", model, backend, table, split, vars(settings), found.metrics)
    _save_records(results, found.predictions)
    if json:
        values = _of(found, "metrics", "contrastive", "per_class", "num_images", "classes", "k")
        print_json(values | {"seconds": found.seconds} | dominant_json(found.dominant))
        return 0
    print_dominant(found.dominant)
    print(f"{found.num_images} images, {len(found.classes)} classes, {found.seconds:.0f} s")
    matched = found.metrics if found.k else None
    _print_rankings(list(found.metrics), found.contrastive, matched, found.k)
    print()
    print_table(
        ["class", "top-1"], [[name, f"{value:.1f}"] for name, value in found.per_class.items()]
    )
    return 0


@takes(VideoSettings)
def video(
    model: tyro.conf.Positional[str],
    annotations: tyro.conf.Positional[Path],
    videos: tyro.conf.Positional[Path],
    /,
    *,
    settings: VideoSettings,
    results: Path | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """Recall of texts and of videos by a model that was trained on images; needs the extra video.

    Example: openblip evaluate video runs/retrieval msrvtt_test.jsonl MSRVTT/videos

    Args:
        model: model folder, run directory, file, https address or hub repository.
        annotations: JSON lines, or a JSON list, with clip_name and caption, as of MSR-VTT.
        videos: folder of the clips.
        settings: the flags of the protocol.
        results: write what each text found there, as .csv or .json.
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO.
        json: print JSON.
    """
    from openblip.batches.video import read_clips
    from openblip.evaluation.video import evaluate_video
    from openblip.inference.loading import load

    _check_records(results)
    clips = read_clips(annotations, videos)
    found = evaluate_video(load(model, backend=backend), clips, **vars(settings))
    _note("video", model, backend, str(annotations), "", vars(settings), found.metrics)
    _save_records(results, found.searches)
    if json:
        print_json(_of(found, "metrics", "contrastive", "num_videos", "num_texts", "k", "seconds"))
        return 0
    print(
        f"{found.num_videos} videos, {found.num_texts} texts, {settings.num_frames} frames, "
        f"{found.seconds:.0f} s"
    )
    names = ["TR@1", "TR@5", "TR@10", "VR@1", "VR@5", "VR@10", "mean", "MdR"]
    _print_rankings(names, found.contrastive, found.metrics if found.k else None, found.k)
    return 0


def _note(
    task: str,
    model: str,
    backend: Backend | None,
    data: str,
    split: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> None:
    """Keep what was found beside the model's training run, whose card will say it."""
    from openblip.checkpoints.model_card import Evaluation, note_evaluation
    from openblip.checkpoints.reading import split_backend, with_backend

    named, source = split_backend(with_backend(model, backend))
    found = Evaluation(
        task=task, data=data, split=split, metrics=metrics, settings=settings, backend=named
    )
    note_evaluation(source, found)


def _of(found: object, *names: str) -> dict[str, Any]:
    return {name: getattr(found, name) for name in names}


def _check_records(results: Path | None) -> None:
    """Misses what stands against writing them before the work, which takes long."""
    from openblip.evaluation.results import check_results_path

    check_outputs({"--results": results})
    if results is not None:
        check_results_path(results)


def _save_records(results: Path | None, records: Sequence[Mapping[str, Any]]) -> None:
    from openblip.evaluation.results import save_records

    if results is not None:
        save_records(results, records)


def _print_rankings(
    names: Sequence[str],
    contrastive: Mapping[str, float],
    matched: Mapping[str, float] | None,
    k: int,
) -> None:
    rows = {"ITC": contrastive} | ({f"ITM of the top {k}": matched} if matched is not None else {})
    print_table(
        ["ranking by", *names],
        [[by, *(f"{values[name]:.1f}" for name in names)] for by, values in rows.items()],
    )


def _print_judged_json(found: Any, *counts: str) -> None:
    """What a model's judgements are worth, with the intervals of the figures."""
    intervals = {name: scores.interval() for name, scores in found.units.items()}
    bounds = {name: [value.low, value.high] for name, value in intervals.items()}
    values = {"metrics": found.metrics, "intervals": bounds, **_of(found, *counts)}
    print_json(values | dominant_json(found.dominant))


def _print_answered(
    found: Any, subject: str, ranked: Sequence[str] | None, *, where: str, results: Path | None
) -> None:
    print_dominant(found.dominant)
    how = "written" if ranked is None else f"ranked among {len(ranked)}"
    print(f"{subject}, answers {how}, {found.seconds:.0f} s")
    if found.metrics:
        _print_accuracies("accuracy of", found.metrics, found.units)
    else:
        print(f"no answers are known{where}" + (f"; see {results}" if results else ""))


def _print_accuracies(
    title: str, metrics: Mapping[str, float], units: "Mapping[str, UnitScores]"
) -> None:
    rows = [[name, f"{value:.2f}", _interval(units.get(name))] for name, value in metrics.items()]
    print_table([title, "%", "95 % interval"], rows)


def _interval(scores: "UnitScores | None") -> str:
    if scores is None:
        return ""
    known = scores.interval()
    return f"{known.low:.2f} to {known.high:.2f}"
