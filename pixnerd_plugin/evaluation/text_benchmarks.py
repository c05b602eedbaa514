"""GenEval and DPG-Bench: their prompts, the folders that their scorers read, and the results that they write.

- GenEval (Ghosh et al., 2023): a folder for each line of its ``evaluation_metadata.jsonl``, with
  ``OUT/00000/metadata.jsonl`` and ``OUT/00000/samples/0000.png``. Its scorer writes a JSON line for each picture, with
  ``tag`` and ``correct``.
- DPG-Bench (Hu et al., 2024): the four pictures of a prompt as one grid, two by two and without gaps, in
  ``OUT/grids/ID.png``; ``ID`` is the name of the prompt's file. Its scorer appends scores by category to a text file.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixnerd_plugin.formats.atomic import atomic_path, remove_leftovers
from pixnerd_plugin.formats.plain_file import parse_json
from pixnerd_plugin.formats.schema import Rule, naming, one_of, shown, text
from pixnerd_plugin.formats.text_file import parse_table, read_text
from pixnerd_plugin.images import image_grid, save_png

GENEVAL_TASKS = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
DPG_CATEGORIES = ('global', 'entity', 'attribute', 'relation', 'other')
IMAGES_PER_PROMPT = 4
RUN = 'run.json'

# GenEval's own file has 70 KB and its results 1 MB; a prompt of DPG-Bench has 1 KB.
MAX_FILE, MAX_PROMPT = 2**22, 2**16


def _is_name(name: Any) -> bool:
    """Whether this is a plain file name, without a path."""
    return type(name) is str and 0 < len(name) <= 255 and name not in ('.', '..') and not set(name) & set('/\\\0:')


_TABLE = Rule('a table', lambda value: type(value) is dict)
_NAMES = Rule(
    'a table of prompts by file name',
    lambda value: (
        type(value) is dict and all(map(_is_name, value)) and all(type(text) is str for text in value.values())
    ),
)
_RUN = dict(run=_TABLE, prompts=_NAMES)
_SIZE = Rule(
    '[height, width] in pixels',
    lambda value: (
        value is None
        or (type(value) is list and len(value) == 2 and all(type(side) is int and 0 < side <= 2**14 for side in value))
    ),
)


@dataclass(frozen=True)
class Job:
    """A picture to draw: number ``sample`` of prompt number ``index``, to be written to ``path``.

    ``size`` is (height, width) in pixels if the prompt asks for one.
    """

    index: int
    sample: int
    prompt: str
    path: Path
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt, its name in the benchmark, and its line of metadata for GenEval."""

    name: str
    text: str
    metadata: dict[str, Any] | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels of its pictures, if its metadata asks for one."""
        size = (self.metadata or {}).get('size')
        return None if size is None else (size[0], size[1])


def read_geneval_prompts(path: str | Path) -> list[Prompt]:
    """Read GenEval's ``evaluation_metadata.jsonl``; a line may also have the ``size`` [height, width] of its pictures.

    Raises:
        FileNotFoundError, ValueError: it is absent, or a line is not of GenEval's form.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"GenEval's prompts {path} do not exist; they are prompts/evaluation_metadata.jsonl of it"
        )
    prompts: list[Prompt] = []
    for entry in _json_lines(path, "GenEval's prompts", dict(prompt=text(MAX_PROMPT), tag=text(100))):
        with naming(f'{path}, line {len(prompts) + 1}'):
            _SIZE.check('size', entry.get('size'))
        prompts.append(Prompt(f'{len(prompts):05d}', entry['prompt'], entry))
    if not prompts:
        raise ValueError(f'{path} has no prompts')
    return prompts


def read_dpg_prompts(folder: str | Path) -> list[Prompt]:
    """Read DPG-Bench's prompts, one text file each.

    Raises:
        FileNotFoundError, ValueError: there are none, one is empty, or a name is ambiguous to the scorer.
    """
    paths = sorted(Path(folder).glob('*.txt')) if Path(folder).is_dir() else []
    if not paths:
        raise FileNotFoundError(
            f"no DPG-Bench prompts *.txt in {folder}; they are dpg_bench/prompts of ELLA's repository"
        )
    prompts = []
    for path in paths:
        prompt = ' '.join(read_text(path, 'prompt', MAX_PROMPT).split())
        if not prompt:
            raise ValueError(f'{path} is empty')
        if '.' in path.stem:
            raise ValueError(f"{path}: DPG-Bench's scorer takes a name up to its first point; rename it")
        prompts.append(Prompt(path.stem, prompt))
    return prompts


def _json_lines(path: str | Path, what: str, rules: Mapping[str, Rule]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; each has the entries of ``rules``."""
    for number, line in enumerate(read_text(path, what, MAX_FILE).splitlines(), start=1):
        if not line.strip():
            continue
        with naming(f'{path}, line {number}: not a JSON object with {" and ".join(rules)}'):
            entry = parse_json(line)
            if type(entry) is not dict:
                raise ValueError(f'it is {shown(entry)}')
            if absent := [name for name in rules if name not in entry]:
                raise ValueError(f'it has no {absent[0]}')
            for name, rule in rules.items():
                rule.check(name, entry[name])
        yield entry


def claim(out: Path, run: dict[str, Any], prompts: list[Prompt], overwrite: bool = False) -> None:
    """Prepare ``out`` for a run; what another run or another choice of prompts left would be scored along with it.

    Args:
        out: where the pictures go.
        run: what decides them beside the prompts (weights, sampler, seed, ...), as JSON gives it back.
        prompts: those to be drawn; ones drawn before must be among them.
        overwrite: remove what is in the way.

    Raises:
        ValueError: if there is something in the way, or if ``out`` has files of other origin.
    """
    description = out / RUN
    names = {prompt.name: prompt.text for prompt in prompts}
    if description.is_file():
        content = read_text(description, 'description of a run', MAX_FILE)
        before = parse_table(str(description), content, _RUN, _RUN, MAX_FILE)
        changed = sorted(key for key in {*run, *before['run']} if run.get(key) != before['run'].get(key))
        if not changed and any(names.get(name) != text for name, text in before['prompts'].items()):
            changed = ['the list of prompts']
        if changed and not overwrite:
            raise ValueError(
                f'{out} holds pictures of another run: {shown(changed[0])[1:-1]} has changed; give another --out, or '
                '--overwrite'
            )
        if changed:
            for name in before['prompts']:
                shutil.rmtree(out / name, ignore_errors=True)
            for folder in ('pictures', 'grids'):
                shutil.rmtree(out / folder, ignore_errors=True)
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f'{out} has files that this command did not write; give another --out')
    with atomic_path(description) as temporary:
        temporary.write_text(json.dumps(dict(run=run, prompts=names), indent=1) + '\n', encoding='utf-8')


def geneval_jobs(prompts: list[Prompt], out: Path, num: int) -> list[Job]:
    """The pictures of all prompts, ``num`` each."""
    jobs = []
    for index, prompt in enumerate(prompts):
        folder = out / prompt.name
        jobs += [Job(index, k, prompt.text, folder / 'samples' / f'{k:04d}.png', prompt.size) for k in range(num)]
    return jobs


def write_geneval_metadata(prompts: list[Prompt], out: Path) -> None:
    for prompt in prompts:
        with atomic_path(out / prompt.name / 'metadata.jsonl') as temporary:
            temporary.write_text(json.dumps(prompt.metadata), encoding='utf-8')


def dpg_jobs(prompts: list[Prompt], out: Path, num: int = IMAGES_PER_PROMPT) -> list[Job]:
    """The single pictures, which are kept beside the grids so that none is drawn twice."""
    pictures = out / 'pictures'
    return [
        Job(index, k, prompt.text, pictures / f'{prompt.name}_{k}.png')
        for index, prompt in enumerate(prompts)
        for k in range(num)
    ]


def write_dpg_grids(prompts: list[Prompt], out: Path) -> None:
    """Join each prompt's four pictures, row by row.

    Raises:
        ValueError: if one is missing.
    """
    grids = out / 'grids'
    grids.mkdir(parents=True, exist_ok=True)
    # The scorer takes every file in this folder for a picture.
    remove_leftovers(grids)
    for prompt in prompts:
        paths = [out / 'pictures' / f'{prompt.name}_{k}.png' for k in range(IMAGES_PER_PROMPT)]
        absent = [path for path in paths if not path.is_file()]
        if absent:
            raise ValueError(f'{absent[0]} is missing; run the command again')
        save_png(grids / f'{prompt.name}.png', image_grid(np.stack([_pixels(path) for path in paths]), 2, gap=0))


def is_drawn(job: Job, parameters: str) -> bool:
    """Whether the picture exists and was drawn with these parameters."""
    if not job.path.is_file():
        return False
    with Image.open(job.path) as picture:
        return picture.info.get('pixnerd') == parameters


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture.convert('RGB'))


def read_geneval_scores(path: str | Path) -> dict[str, float]:
    """Read the ``results.jsonl`` of GenEval's ``evaluate_images.py``: shares of correct pictures by task.

    Returns:
        The six tasks in the paper's order, and ``overall``, the mean over tasks.

    Raises:
        FileNotFoundError, ValueError: it is absent, of another form, or lacks a task.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"GenEval's results {path} do not exist; its evaluation/evaluate_images.py writes them")
    correct: dict[str, list[bool]] = {}
    rules = dict(tag=text(100), correct=one_of(True, False))
    for entry in _json_lines(path, 'results of GenEval', rules):
        correct.setdefault(entry['tag'], []).append(entry['correct'])
    absent = [task for task in GENEVAL_TASKS if task not in correct]
    if absent:
        raise ValueError(f'{path} has no pictures of the task {absent[0]}; score all prompts')
    scores = {task: float(np.mean(correct[task])) for task in GENEVAL_TASKS}
    return scores | {'overall': float(np.mean(list(scores.values())))}


def read_dpg_scores(path: str | Path) -> dict[str, float]:
    """Read the results file of DPG-Bench's ``compute_dpg_bench.py``: scores of 100 by category, and ``average``.

    Raises:
        FileNotFoundError, ValueError: it is absent, or the scorer had not ended.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"DPG-Bench's results {path} do not exist; its compute_dpg_bench.py writes them")
    summary = read_text(path, 'results of DPG-Bench', MAX_FILE)
    average = re.findall(r'^DPG-Bench score: (\d+\.?\d*)', summary, re.MULTILINE)
    level = re.findall(r'^L1 category scores:\n((?:\t.*\n)+)', summary, re.MULTILINE)
    if not average or not level:
        raise ValueError(f'{path} has no summary at its end; has the scorer ended?')
    found = {name.lower(): float(value) for name, value in re.findall(r'\t([\w ]+): (\d+\.?\d*)', level[-1])}
    absent = [category for category in DPG_CATEGORIES if category not in found]
    if absent:
        raise ValueError(f'{path} has no score of the category {absent[0]}; score all prompts')
    return {category: found[category] for category in DPG_CATEGORIES} | {'average': float(average[-1])}
