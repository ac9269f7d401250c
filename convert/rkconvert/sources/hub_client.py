"""The only door to huggingface_hub: one repository at one commit, its files into the hub's own cache.

Large files go through a partial file that outlives the process, since huggingface_hub throws away what an interrupted
run has received; they end under the name the cache expects, so every other tool finds them there.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rk3588 import bundle, files
from rk3588.errors import CheckpointError, TargetError, UsageError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

BRANCH = "main"  # where no revision is named
_ATTEMPTS = 5  # without a byte received in between
_PAUSE = 1.0  # seconds before each
_TIMEOUT = 30.0  # seconds without an answer or a byte
_PLAIN = re.compile(r"\w[\w-]{0,127}", re.ASCII)  # what can be the name of a file: a hash
_SHA256 = 64  # a large file's ETag is its SHA-256 in hexadecimal, a small one's is git's SHA-1


def masked(url: str) -> str:
    """``url`` without the user and the password that may stand in it."""
    before, mark, host = url.rpartition("@")
    scheme = re.match(r"\w+:/*|", before)
    return f"{scheme[0] if scheme else ''}***@{host}" if mark else url


def _commit(info: ModelInfo) -> str:
    """What the revision stands for; TypeError where that is no hash."""
    if not isinstance(info.sha, str) or not _PLAIN.fullmatch(info.sha):
        raise TypeError("no commit")
    return info.sha


def _sizes(info: ModelInfo) -> dict[str, int]:
    """The files with their bytes; TypeError for what are none. A name that leads out of the repository is nothing that
    could be converted."""
    found = {}
    for file in info.siblings or ():
        size = file.size or 0
        if not isinstance(size, int) or size < 0:
            raise TypeError("a size that is none")
        if all(map(files.is_name, file.rfilename.split("/"))):
            found[file.rfilename] = size
    return found


class Repository:
    """``name`` (user/repo) at ``revision``, a branch, tag or commit. Every error is one sentence.

    ``commit`` is what the revision stands for now; ``sizes`` has every file with its bytes.
    """

    def __init__(self, name: str, revision: str | None) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.constants
            import huggingface_hub.utils
        except ImportError as error:
            raise UsageError(
                f"{name} is not on this machine, and a download needs huggingface_hub: pip install 'rk3588[convert]'"
            ) from error
        huggingface_hub.utils.logging.set_verbosity_error()  # it would tell of retries; we tell how it ended
        self.name, self.revision = name, revision or BRANCH
        self.endpoint: str = huggingface_hub.constants.ENDPOINT
        self.shown = masked(self.endpoint)
        self.cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
        self._hub = huggingface_hub
        with self._explained(), self._understood():
            api = huggingface_hub.HfApi(endpoint=self.endpoint)
            info = api.model_info(name, revision=self.revision, files_metadata=True, timeout=_TIMEOUT)
            self.commit = _commit(info)
            self.sizes = _sizes(info)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """huggingface_hub checks nothing of what a hub says of a repository: a proxy may answer in its place."""
        try:
            yield
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.shown} answers, and not as a hub does, when asked for {self.name}: check HF_ENDPOINT and the "
                "proxy between"
            ) from error

    def small(self, file: str) -> Path:
        """A file of configuration, downloaded if it is not in the cache."""
        self.check_size(file, files.TOKENIZER)
        return self.large(file, lambda _: None)

    def check_size(self, file: str, most: int) -> None:
        """CheckpointError for a file of more than ``most`` bytes, by the hub's list."""
        if self.sizes[file] > most:
            raise CheckpointError(
                f"{file} of {self.name} has {self.sizes[file] / 1e6:.1f} MB, where {most / 1e6:.0f} MB are "
                "the most: is it what its name says?"
            )

    def cached(self, file: str) -> Path | None:
        found = self._hub.try_to_load_from_cache(self.name, file, cache_dir=self.cache, revision=self.commit)
        return Path(found) if isinstance(found, str) else None

    def piece(self, file: str, start: int, size: int) -> bytes:
        """``size`` bytes of a file from ``start`` on; fewer where it ends before."""
        with self._explained(file):
            return b"".join(self._received(file, start, min(start + size, self.sizes[file])))

    def large(self, file: str, step: Callable[[int], None]) -> Path:
        """A file of weights, downloaded if it is not in the cache; goes on where an earlier run ended.

        ``step`` is told the bytes that are here, those of earlier runs too.
        """
        with self._explained(file):
            there = self.cached(file)
            if there is not None:
                step(there.stat().st_size)
                return there
            etag = self._checked_etag(file)
            blob = self._folder() / "blobs" / etag
            if not blob.exists():
                self._receive(file, blob, self.sizes[file], step)
            return self._linked(file, blob)

    def _checked_etag(self, file: str) -> str:
        """What a file is called in the cache, of the listed size: huggingface_hub makes a path of what the hub says."""
        metadata = self._hub.get_hf_file_metadata(self._url(file), timeout=_TIMEOUT)
        if not metadata.etag or not _PLAIN.fullmatch(metadata.etag):
            said = f"the ETag {metadata.etag[:80]!r}" if metadata.etag else "no ETag"
            raise CheckpointError(f"{self.shown} gives {said} for {file} of {self.name}: is HF_ENDPOINT a hub?")
        if metadata.size is not None and metadata.size != self.sizes[file]:
            raise CheckpointError(
                f"{self.shown} lists {file} of {self.name} with {self.sizes[file]} bytes and sends {metadata.size}: "
                "is HF_ENDPOINT a hub?"
            )
        return str(metadata.etag)

    def need_space(self, size: int) -> None:
        """TargetError when ``size`` more bytes do not fit into the cache."""
        place = self.cache
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if size > free:
            raise TargetError(
                f"no space left in {self.cache}: {size / 1e6:.1f} MB of {self.name} are still to be downloaded and "
                f"{free / 1e6:.1f} MB are free; free some, or set HF_HOME to a folder on another disk"
            )

    def _folder(self) -> Path:
        from huggingface_hub.file_download import repo_folder_name

        folder: str = repo_folder_name(repo_id=self.name, repo_type="model")
        return self.cache / folder

    def _url(self, file: str) -> str:
        return str(self._hub.hf_hub_url(self.name, file, revision=self.commit, endpoint=self.endpoint))

    def _linked(self, file: str, blob: Path) -> Path:
        """The file in the commit's folder of the cache, as huggingface_hub puts it there.

        It asks the hub again, and makes a path of what that says then.
        """
        path = self._folder() / "snapshots" / self.commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            shutil.copyfile(blob, path)
        if self.revision != self.commit and all(map(files.is_name, self.revision.split("/"))):
            ref = self._folder() / "refs" / self.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(self.commit, encoding="utf-8")
        return path

    def _receive(self, file: str, blob: Path, size: int, step: Callable[[int], None]) -> None:
        blob.parent.mkdir(parents=True, exist_ok=True)
        part = blob.with_name(f"{blob.name}.rkconvert")
        with part.open("ab") as out:
            fcntl.flock(out, fcntl.LOCK_EX)  # another rkconvert may be at it: then wait, and find it done
            if blob.exists():
                part.unlink(missing_ok=True)
                step(size)
                return
            if out.tell() > size:
                out.truncate(0)
            step(out.tell())
            for chunk in self._received(file, out.tell(), size):
                out.write(chunk)
                step(len(chunk))
            out.flush()
            if len(blob.name) == _SHA256 and bundle.sha256(part) != blob.name:
                part.unlink()
                raise CheckpointError(f"{file} of {self.name} arrived damaged: run the same command again")
            part.rename(blob)

    def _received(self, file: str, at: int, end: int) -> Iterator[bytes]:
        """The bytes of a file from ``at`` to ``end``, over as many connections as it takes."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        left = _ATTEMPTS
        while at < end:
            start, broke = at, None
            try:
                with closing(self._stream(file, at, end)) as chunks:
                    for chunk in chunks:
                        at += len(chunk)
                        yield chunk
            except HTTPError as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                    raise
                broke = error
            # An answer that is whole and brings nothing is no better than one that broke off.
            left = _ATTEMPTS if at > start else left - 1
            if left == 0:
                raise CheckpointError(
                    f"the connection to {self.shown} broke after {at / 1e6:.1f} of {end / 1e6:.1f} MB of "
                    f"{file}: run the same command again, and it goes on from there"
                ) from broke
            if at < end:
                time.sleep(_PAUSE)

    def _stream(self, file: str, start: int, end: int) -> Generator[bytes, None, None]:
        """The bytes that one request brings, at most those from ``start`` to ``end``."""
        utils = self._hub.utils
        wanted = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        headers: dict[str, str] = {**utils.build_hf_headers(), **wanted}
        # Each attempt asks the hub, not the place it redirected to before: that link may have expired.
        with utils.get_session().stream("GET", self._url(file), headers=headers, timeout=_TIMEOUT) as response:
            if response.is_error:
                response.read()  # the explanation looks into it
            utils.hf_raise_for_status(response)
            at = start if response.status_code == 206 else 0  # a server that knows no ranges sends all
            for chunk in response.iter_bytes():
                yield chunk[max(start - at, 0) : end - at]
                at += len(chunk)
                if at >= end:
                    return

    @contextmanager
    def _explained(self, file: str = "") -> Iterator[None]:
        """The boundary: huggingface_hub's exceptions become ours."""
        from huggingface_hub import errors

        try:
            yield
        except (errors.HfHubHTTPError, errors.HFValidationError) as error:
            raise CheckpointError(self._refusal(error, file)) from error
        except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            if isinstance(error.__cause__, errors.HfHubHTTPError):
                raise CheckpointError(self._refusal(error.__cause__, file)) from error
            raise CheckpointError(self._unreachable()) from error
        except ValueError as error:  # from the depths of the HTTP client; its text shows the whole address
            raise CheckpointError(f"{self.shown} is no address of a hub: check HF_ENDPOINT") from error
        except OSError as error:
            raise TargetError(
                f"cannot write to {self.cache}, where downloads are kept: {error.strerror or error}; set HF_HOME to "
                "another folder"
            ) from error

    def _unreachable(self) -> str:
        if self._hub.constants.HF_HUB_OFFLINE:
            return f"{self.name} is not a folder here, and HF_HUB_OFFLINE forbids to ask {self.shown} for it"
        return (
            f"{self.name} is not a folder here, and {self.shown} cannot be reached: check the network (or "
            "HF_ENDPOINT), or give a folder or file on this machine"
        )

    def _refusal(self, error: Exception, file: str) -> str:
        """Why the hub did not answer as asked, and what to do."""
        from huggingface_hub import errors

        name, token = self.name, self._hub.get_token()
        page = f"{self.shown}/{name}"
        if isinstance(error, errors.GatedRepoError):
            if token:
                return f"{name} is gated, and the account of HF_TOKEN has no access yet: ask for it at {page}"
            return (
                f"{name} is gated: accept its conditions at {page}, make a token at {self.shown}/settings/tokens, "
                "and set HF_TOKEN to it"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{name} has no revision {self.revision}: see the branches and tags at {page}/tree/main"
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return f"{name} has no file {file} at revision {self.revision}: see {page}/tree/{self.revision}"
        if isinstance(error, errors.RepositoryNotFoundError):
            why = "HF_TOKEN cannot see it" if token else "it is private, which needs HF_TOKEN"
            return f"{name} is neither a folder here nor a repository at {self.shown}: check the name, or {why}"
        if isinstance(error, errors.HFValidationError):
            return f"{name} is neither a folder here nor a name that a repository can have"
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
        if status in (401, 403) and token:
            return f"{self.shown} does not accept HF_TOKEN for {name} (HTTP {status}): make a new token"
        return f"{self.shown} answered HTTP {status} when asked for {file or name}: try again later"
