"""curve.json: the scores of the kept checkpoints. It grows by one point at a time, and existing points are not computed
again."""
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.learning_curve.scoring import BACKBONE, Scores
from utils.checkpoint.kept import kept_checkpoints
from utils.errors import UserError
from utils.storage.atomic import atomic_file
from utils.storage.run_folder import set_aside

CURVE = 'curve.json'


class Curve:
    """The points of one run.

    path: of curve.json. settings: the values on which all of its scores depend; a file with others is renamed and a new one
    started. `points`: by epoch; each has `epoch`, `steps`, `sha256` of the checkpoint's file, and `scores` as `score_network`
    gives them. Raises `UserError` for any other file.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]):
        self.path, self.settings = Path(path), json.loads(json.dumps(settings))
        self.points: dict[int, dict[str, Any]] = {}
        self.set_aside: Path | None = None
        self._digests: dict[Path, tuple[tuple[int, int], str]] = {}
        if not self.path.exists():
            return
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
            points, same = {int(point['epoch']): point for point in content['points']}, content['settings'] == self.settings
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f'{self.path} was not written by curve.py ({error}): move it away') from error
        if same:
            self.points = points
        else:
            self.set_aside = set_aside(self.path)

    def missing(self, run: str | Path) -> dict[int, Path]:
        """The checkpoints of the run that have no score yet, or another one than their content's, by epoch in order."""
        return {epoch: path for epoch, path in kept_checkpoints(run).items()
                if self.points.get(epoch, {}).get('sha256') != self.digest(path)}

    def digest(self, path: Path) -> str:
        """The file's SHA-256, computed again only when its size or time has changed."""
        state = os.stat(path)
        stamp = state.st_size, state.st_mtime_ns
        if self._digests.get(path, (None, ''))[0] != stamp:
            with open(path, 'rb') as file:
                self._digests[path] = stamp, hashlib.file_digest(file, 'sha256').hexdigest()
        return self._digests[path][1]

    def add(self, epoch: int, path: Path, steps: int, scores: Mapping[str, Scores]) -> None:
        """Record the scores of the checkpoint at `path`, and write the file."""
        self.points[epoch] = {'epoch': epoch, 'steps': steps, 'sha256': self.digest(path), 'scores': dict(scores)}
        with atomic_file(self.path, 'w') as file:
            json.dump({'settings': self.settings, 'start': self.start(), 'points': self.in_order()}, file, indent=1)

    def in_order(self) -> list[dict[str, Any]]:
        """All points, by epoch."""
        return [self.points[epoch] for epoch in sorted(self.points)]

    def start(self) -> Scores | None:
        """The start: the scores of the backbone alone with its initial weights, or None while the run's first checkpoint is not
        scored."""
        return self.points[0]['scores'][BACKBONE] if 0 in self.points else None
