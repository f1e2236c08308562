"""The folder of a run's checkpoints: each complete under its final name, or not there.

    step-00000020            complete: it got this name after everything in it was on the disk
    step-00000020.saving     being written
    step-00000020.replaced   complete: the earlier one of a step that is being saved once more
    step-00000020.deleting   being removed
    latest                   name of the one saved last, for people and tools; nothing here reads it

A save, at any kill: the new checkpoint or the one before it can be found, and none in part. One
writer at a time (`lock`), and one save at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gradacc_dist.checkpoint.disk import (
    remove_folder,
    replace_text,
    sync_folder,
    write_new,
)
from gradacc_dist.checkpoint.manifest import MANIFEST, STATE, FileEntry, Manifest
from gradacc_dist.checkpoint.verify import verify
from gradacc_dist.errors import CheckpointError, DiskError

SAVING, REPLACED, DELETING = ".saving", ".replaced", ".deleting"
LATEST = "latest"
CHECKPOINTS = "checkpoints"
"""Name of the folder in a run's output folder."""

_NAME = re.compile(r"step-(\d{8,})(\.saving|\.replaced|\.deleting)?")

Check = Callable[[Path], Manifest]


@dataclass(frozen=True)
class Checkpoint:
    """A complete one."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Store:
    """The checkpoints in `folder`, `<output>/checkpoints` of a run.

    `begin`, `commit`, `clear` and `prune` are for one process of the run, and raise DiskError;
    all raise CheckpointError where the folder cannot be listed. Foreign files are left alone.
    """

    folder: Path

    def begin(self, step: int) -> Path:
        """Make the folder into which all ranks then write their shards of `step`."""
        with DiskError.naming(self.folder):
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                sync_folder(self.folder.parent)
            self.clear()
            saving = self.saving(step)
            saving.mkdir()
        return saving

    def saving(self, step: int) -> Path:
        """The folder that `begin` makes."""
        return self._path(step, SAVING)

    def final(self, step: int) -> Path:
        """The folder of the complete checkpoint of `step`."""
        return self._path(step)

    def commit(self, step: int, shards: Iterable[FileEntry], state: Mapping[str, object]) -> Path:
        """Complete the save of `step`, once all ranks have reported their shards; return it.

        Raises CheckpointError where a shard reported by a rank is not in the folder. After a
        DiskError the new checkpoint may be complete all the same: the error came behind the rename.
        """
        saving, final = self._path(step, SAVING), self._path(step)
        shards = tuple(shards)
        _require_shards(saving, shards)
        text = json.dumps(state, indent=1) + "\n"
        num_bytes, sha256 = write_new(saving / STATE, [text.encode()])
        stated = FileEntry(name=STATE, num_bytes=num_bytes, sha256=sha256)
        manifest = Manifest(step=step, files=(*shards, stated))
        write_new(saving / MANIFEST, [manifest.to_bytes()])
        sync_folder(saving)
        self._put_in_place(saving, final, self._path(step, REPLACED))
        replace_text(self.folder / LATEST, final.name + "\n")
        return final

    def clear(self) -> None:
        """Remove what failed or killed saves and deletions left; nothing that is complete."""
        for path, step, kind in self._entries():
            if kind in (SAVING, DELETING):
                remove_folder(path)
            elif kind == REPLACED and self._path(step).exists():
                self._delete([path])
            elif kind == REPLACED:
                with DiskError.naming(path):
                    path.rename(self._path(step))

    def candidates(self) -> list[tuple[int, Path]]:
        """Steps and folders of what should be complete checkpoints, the newest first."""
        complete = [entry for entry in self._entries() if entry[2] in ("", REPLACED)]
        complete.sort(key=lambda entry: (-entry[1], entry[2]))
        return [(step, path) for path, step, _ in complete]

    def newest_complete(self, check: Check = verify) -> tuple[Checkpoint | None, list[str]]:
        """The first candidate that passes `check`, and why newer ones were passed over.

        `check` raises CheckpointError for a damaged one. Ranks may share its work by one that is
        collective, and raises on all of them or on none.
        """
        return first_complete(self.candidates(), check)

    def prune(self, keep: int, every: int | None = None, check: Check = verify) -> list[Path]:
        """Delete old checkpoints; return what was deleted, the newest first. Not during a save.

        Kept are the newest one that passes `check`, the `keep` - 1 before it, all at multiples of
        `every` steps, and any newer than it: those are damaged, and may still be mended.
        """
        assert keep >= 2, f"keep={keep}: a single checkpoint may turn out damaged"
        self.clear()
        newest, _ = self.newest_complete(check)
        if newest is None:
            return []
        complete = [c for c in self.candidates() if c[0] <= newest.manifest.step]
        old = [folder for step, folder in complete[keep:] if every is None or step % every]
        self._delete(old)
        return old

    def _put_in_place(self, saving: Path, final: Path, replaced: Path) -> None:
        """Rename `saving` to `final`; an earlier one stays complete under a name that is known."""
        with DiskError.naming(final):
            if final.exists():
                final.rename(replaced)
            saving.rename(final)
        sync_folder(self.folder)
        if replaced.is_dir():
            self._delete([replaced])

    def _delete(self, folders: list[Path]) -> None:
        doomed = [folder.with_suffix(DELETING) for folder in folders]
        for folder, away in zip(folders, doomed, strict=True):
            with DiskError.naming(folder):
                folder.rename(away)
        sync_folder(self.folder)  # no half folder under its old name, even after a power cut
        for away in doomed:
            remove_folder(away)

    def _entries(self) -> list[tuple[Path, int, str]]:
        """What has a name of ours, by name: path, step and the kind, "" where it is final."""
        try:
            folders = [path for path in sorted(self.folder.iterdir()) if path.is_dir()]
        except FileNotFoundError:  # before the first save
            return []
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot be listed: {error.strerror}; give this user access to it, "
                "or set --run.output_dir to another folder"
            ) from error
        named = ((path, _NAME.fullmatch(path.name)) for path in folders)
        return [(path, int(name[1]), name[2] or "") for path, name in named if name]

    def _path(self, step: int, kind: str = "") -> Path:
        return self.folder / f"step-{step:08d}{kind}"


def first_complete(
    candidates: Iterable[tuple[int, Path]], check: Check = verify
) -> tuple[Checkpoint | None, list[str]]:
    """The first of steps and folders that passes `check`, and why those before it did not."""
    passed_over: list[str] = []
    for step, folder in candidates:
        try:
            manifest = check(folder)
            if manifest.step != step:
                raise CheckpointError(
                    f"{folder}: holds step {manifest.step}; give it its own name back"
                )
            return Checkpoint(folder, manifest), passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    return None, passed_over


def _require_shards(saving: Path, shards: tuple[FileEntry, ...]) -> None:
    for shard in shards:
        path = saving / shard.name
        with DiskError.naming(path):
            seen_bytes = path.stat().st_size if path.exists() else 0
        if seen_bytes != shard.num_bytes:
            raise CheckpointError(
                f"{path}: {shard.num_bytes:,} bytes were written by a rank, {seen_bytes:,} are "
                "seen here; set --run.output_dir to a folder that all nodes share"
            )
