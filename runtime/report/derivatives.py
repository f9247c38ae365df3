"""What a run found, in the form of BIDS derivatives.

    dataset_description.json, README.md, .bidsignore, sha256sums.txt
    sub-01/func/sub-01_task-decoding_run-1_events.tsv, .json    trials and what was decoded
    sub-01/func/..._desc-fast_stat-effect_statmap.nii.gz        betas, one a trial
    sub-01/func/..._desc-fast_stat-variance_statmap.nii.gz      and their variance
    sub-01/func/..._desc-redCircle_heatmap.nii.gz               heat maps, one a trial
    sub-01/figures/..._trial-0000_desc-refined_image.png        pictures

The standard has no names for statistical maps, heat maps and figures yet: `.bidsignore` lists
them. All else is what the validator knows. Nothing of a run goes into a dataset but what its
journal says about volumes, trials and answers: no date, no path, no name.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ... import __version__
from ..errors import InputError
from ..realtime.messages import WINDOWS
from .betas import Betas
from .dataset import DatasetWriter, Names, as_json
from .events_table import COLUMNS, sidecar, table
from .heat import heat_maps, label
from .story import Attempt, Story

BIDS_VERSION = "1.10.0"
SUMS = "sha256sums.txt"
_IGNORED = f"""# no names in the standard yet
*_statmap.nii.gz
*_statmap.json
*_heatmap.nii.gz
*_heatmap.json
figures
{SUMS}
"""
_README = """# Decoded run

Written by scanside {version} from a real-time run of {trials} trials.

`events.tsv` has a row for each trial with the refined answer, or the fast one where there is no
refined one; its sidecar explains the columns.

`stat-effect` are the betas of single trials as the decoder read them, on the grid of the model,
placed in the world of the run's first kept volume: standard deviations over the trials up to then,
with their mean taken off. `stat-variance` is the variance of their estimate in these units squared.
Each volume of these files is one trial, in the order of `Trials` in their sidecar.

`sha256sums.txt` holds the hash of every other file; `sha256sum -c sha256sums.txt` checks them.
"""


def write_derivatives(story: Story, out: Path, names: Names | None = None) -> list[Path]:
    """Write the derivatives of a run.

    Parameters
    ----------
    story : Story
        Its newest attempt is written; former ones were broken off by the scanner.
    out : Path
        A folder that is not there or is empty.
    names : Names, optional

    Returns
    -------
    files : list of Path
        All that was written.

    Raises
    ------
    InputError
        A folder that holds something or cannot be written; a damaged run.
    """
    names = names or Names()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something already; name a new or empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        writer = DatasetWriter(out, names)
        _about(writer, story)
        _events(writer, story)
        _betas(writer, story)
        _heat(writer, story)
        _sums(writer)
    except OSError as exc:
        raise InputError(f"{out} cannot be written: {exc.strerror}") from exc
    return writer.files


def _about(writer: DatasetWriter, story: Story) -> None:
    description = {
        "Name": "Decoded real-time run",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "scanside",
                "Version": str(story.setting.get("version", __version__)),
                "Description": f"real-time decoding by bundle {story.header['bundle']}",
            }
        ],
    }
    trials = len(story.last.trials)
    writer.text(writer.root / "dataset_description.json", as_json(description))
    writer.text(writer.root / "README.md", _README.format(version=__version__, trials=trials))
    writer.text(writer.root / ".bidsignore", _IGNORED)


def _events(writer: DatasetWriter, story: Story) -> None:
    """The table of trials, with the answers' pictures."""
    pictures: dict[tuple[int, str], str] = {}
    for trial in story.last.trials.values():
        for revision, answer in sorted(trial.answers.items()):
            for kind in ("preview", "image"):
                source = story.folder / (answer.get(kind) or "")
                if not answer.get(kind) or not source.is_file():
                    continue
                name = f"trial-{trial.number:04d}_desc-{WINDOWS[revision]}_{kind}.png"
                path = writer.path(name, "figures")
                shutil.copyfile(source, path)
                pictures[trial.number, kind] = path.relative_to(writer.root).as_posix()
    rows = table(story.last, pictures)
    lines = ["\t".join(COLUMNS), *("\t".join(row) for row in rows)]
    writer.path("events.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    writer.path("events.json").write_text(as_json(sidecar()), encoding="utf-8")


def _betas(writer: DatasetWriter, story: Story) -> None:
    attempt = story.last
    for revision, window in enumerate(WINDOWS):
        kept = [
            one
            for one in sorted(attempt.trials)
            if story.beta(attempt.number, one, revision) is not None
        ]
        if not kept:
            continue
        betas = Betas.of(story)
        both = [betas.read(attempt.number, one, revision) for one in kept]
        for k, (stat, units) in enumerate((("effect", "1"), ("variance", "1"))):
            data = np.stack([betas.grid(one[k]) for one in both], -1)
            told = _image_facts(story, attempt, kept) | {
                "Description": f"{stat} of single-trial betas, {window} answers",
                "Units": units,
                "WindowSeconds": story.header[f"{window}_s"],
            }
            name = f"desc-{window}_stat-{stat}_statmap"
            writer.image(name, betas.image(data, attempt), told)


def _heat(writer: DatasetWriter, story: Story) -> None:
    attempt = story.last
    concepts: dict[str, dict[int, Any]] = {}
    for (number, trial), maps in heat_maps(story, draw=False).items():
        for one in maps:
            if number == attempt.number:
                concepts.setdefault(one.concept, {})[trial] = one
    for concept, maps in concepts.items():
        kept = sorted(maps)
        images: list[Any] = [nib.load(maps[one].path) for one in kept]
        data = np.stack([np.asarray(one.dataobj, np.float32) for one in images], -1)
        told = _image_facts(story, attempt, kept) | {
            "Description": f"where in the brain {concept!r} is, 0 to 1",
            "Units": "1",
            "Concept": concept,
            "Similarity": [maps[one].similarity for one in kept],
        }
        image: Any = nib.Nifti1Image(data, images[0].affine)
        image.header.set_xyzt_units("mm", "sec")
        writer.image(f"desc-{label(concept)}_heatmap", image, told)


def _image_facts(story: Story, attempt: Attempt, trials: list[int]) -> dict[str, Any]:
    return {
        "Trials": trials,
        "TrialTypes": [attempt.trials[one].event.name for one in trials],
        "SpatialReference": "the first kept volume of the run",
        "SkullStripped": True,
        "RepetitionTime": story.tr_s,
        "Bundle": story.header["bundle"],
    }


def _sums(writer: DatasetWriter) -> None:
    """The hash of every file but this one."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  "
        f"{path.relative_to(writer.root).as_posix()}"
        for path in sorted(writer.files)
    ]
    writer.text(writer.root / SUMS, "\n".join(lines) + "\n")
