"""METEOR and SPICE, by the Java programs of their authors as the COCO evaluation runs them.

The programs are not part of OpenBLIP. They lie as in the Python package `pycocoevalcap`:
`meteor/meteor-1.5.jar` with `meteor/data/`, and `spice/spice-1.0.jar` with `spice/lib/`.
"""

import json
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import IO, Self

from openblip.metrics.caption_tokens import caption_tokens
from openblip.runtime.errors import DataError, MetricLeftOut

_METEOR = Path("meteor", "meteor-1.5.jar")
_SPICE = Path("spice", "spice-1.0.jar")
# What the package does not ship, but fetches when it computes SPICE first.
_CORENLP = tuple(
    Path("spice", "lib", f"stanford-corenlp-3.6.0{part}.jar") for part in ("", "-models")
)
# Between the fields of a line to METEOR.
_BAR = " ||| "


@dataclass(frozen=True)
class JavaPrograms:
    """The programs of a folder."""

    java: str
    """Java itself."""
    meteor: Path
    """METEOR's program."""
    spice: Path
    """SPICE's."""
    spice_lacks: tuple[Path, ...]
    """Files that SPICE needs and that are not there; with any, it is left out."""

    @classmethod
    def find(cls, folder: Path) -> Self:
        """Those of a folder.

        Raises:
            DataError: there is no Java, or METEOR is missing.
        """
        java = shutil.which("java")
        if java is None:
            raise DataError(
                "METEOR and SPICE need Java, and there is no program `java`: install one"
            )
        # They are started from their own folders.
        folder = folder.resolve()
        needed = [folder / file for file in (_SPICE, *_CORENLP)]
        meteor = folder / _METEOR
        if not meteor.is_file():
            raise DataError(
                f"{meteor}: no such file; give the folder of the Python package pycocoevalcap, "
                "which has it"
            )
        lacking = tuple(file for file in needed if not file.is_file())
        return cls(java, meteor, folder / _SPICE, lacking)

    def metrics(
        self, candidates: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """METEOR of captions, and SPICE unless it lacks something; 0 to 1.

        A metric whose program fails is left out with a warning: the captions took long to write.

        Args:
            candidates: captions, one per image.
            references: human captions of the same images.
        """
        ours = [_tokenised(text) for text in candidates]
        human = [[_tokenised(text) for text in texts] for texts in references]
        programs = {"METEOR": (_meteor, self.meteor)}
        if not self.spice_lacks:
            programs["SPICE"] = (_spice, self.spice)
        found = {}
        for name, (run, jar) in programs.items():
            try:
                found[name] = run(self.java, jar, ours, human)
            except (OSError, ValueError, LookupError) as error:
                warnings.warn(f"{name} is left out: {jar} failed ({error})", MetricLeftOut, 2)
        return found


def _tokenised(text: str) -> str:
    """The tokens of a caption with spaces between them, and nothing that ends a field."""
    return " ".join(caption_tokens(text)).replace(_BAR.strip(), " ")


def _meteor(
    java: str, jar: Path, candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """Denkowski and Lavie (2014): a line of counts for each caption, then the score of all."""
    command = [java, "-Xmx2G", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            command,
            cwd=jar.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            encoding="utf-8",
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            counts = [
                _asked(process.stdin, process.stdout, _BAR.join(["SCORE", *human, text]))
                for text, human in zip(candidates, references, strict=True)
            ]
            scores = [_asked(process.stdin, process.stdout, _BAR.join(["EVAL", *counts]))]
            scores += [process.stdout.readline() for _ in candidates]
            # Before it stand those of each caption, of which it is no mean.
            return float(scores[-1])
        except (OSError, ValueError) as error:
            process.kill()
            process.wait()
            complaints.seek(0)
            raise ValueError(_cause(complaints.read()) or error) from error
        finally:
            process.kill()
            process.communicate()


def _asked(questions: IO[str], answers: IO[str], line: str) -> str:
    questions.write(line + "\n")
    questions.flush()
    return answers.readline().strip()


def _spice(
    java: str, jar: Path, candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """Anderson et al. (2016): F-score over the tuples of scene graphs, the mean over captions."""
    rows = [
        {"image_id": number, "test": text, "refs": list(human)}
        for number, (text, human) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch, "captions.json"), Path(scratch, "scores.json")
        given.write_text(json.dumps(rows), encoding="utf-8")
        command = [java, "-Xmx8G", "-jar", jar.name, str(given), "-out", str(found), "-silent"]
        done = subprocess.run(command, cwd=jar.parent, capture_output=True, text=True, check=False)
        if done.returncode or not found.is_file():
            raise ValueError(_cause(done.stderr) or f"exit code {done.returncode}")
        answers = json.loads(found.read_text(encoding="utf-8"))
    return fmean(float(row["scores"]["All"]["f"]) for row in answers)


def _cause(complaints: str) -> str:
    """The line that names an error, of what a program wrote: before it stand notes, after it calls.

    Without such a line, the last three.
    """
    lines = [line.strip() for line in complaints.strip().splitlines()]
    named = [line for line in lines if "Exception" in line or "Error" in line]
    return "; ".join(named[:1] or lines[-3:])
