"""Resolves the target of `attach` to a cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from flowgentic_actors.cluster.client.cluster_watch import Watched, watched_file
from flowgentic_actors.cluster.persistence.cluster_folders import DESCRIPTOR, descriptor_of
from flowgentic_actors.cluster.persistence.manifest import MANIFEST, read_manifest
from flowgentic_actors.cluster.persistence.memory_lock import is_held, read_lock_owner
from flowgentic_actors.cluster.protocol.handle import (
    ClusterHandle,
    Descriptor,
    is_export,
    read_export,
)
from flowgentic_actors.config import NAME_PATTERN, MemoryConfig
from flowgentic_actors.config_values import unknown_settings, user_path
from flowgentic_actors.environment import DESCRIPTOR_VARIABLE
from flowgentic_actors.errors import ClusterNotFoundError, UntrustedPathError
from flowgentic_actors.secret import Secret
from flowgentic_actors.storage.private_files import check_folder, trusted_path

Target: TypeAlias = ClusterHandle | str | os.PathLike[str] | None

KeptTarget: TypeAlias = Target | Secret[str]

_NAME: Final = re.compile(NAME_PATTERN)
_OWN: Final = frozenset(
    {
        "request_timeout",
        "connection_pool",
        "stay_awake",
        "scratch",
        "detect_conflicts",
        "thread_backlog",
        "ttl",
        "index",
        "allowed_types",
    }
)
"""Settings that each program decides for itself."""


def config_to_attach(target: object, settings: Mapping[str, Any]) -> MemoryConfig:
    """The configuration of a program that attaches to a cluster.

    Args:
        target: What it attaches to.
        settings: What it gives of `MemoryConfig`.

    Raises:
        TypeError: If the target cannot mean a cluster, or a setting is the opener's to give.
        pydantic.ValidationError: If a setting is impossible.
    """
    if not (target is None or isinstance(target, (ClusterHandle, str, os.PathLike))):
        hint = ": give its handle" if hasattr(type(target), "handle") else ""
        raise TypeError(
            "attach() takes a handle, an exported handle, a cluster's name, or the path of its "
            f"folder, descriptor file or persist_path, not {type(target).__name__}{hint}"
        )
    if told := unknown_settings(settings, MemoryConfig.model_fields):
        raise TypeError(f"attach(): {told}")
    if extra := sorted(set(settings) - _OWN):
        raise TypeError(
            f"attach() takes {', '.join(sorted(_OWN))}; {', '.join(extra)} was decided by the "
            "cluster's opener"
        )
    return MemoryConfig(mode="distributed", **settings)


class FoundCluster(NamedTuple):
    """A cluster to attach to.

    Attributes:
        descriptor: How to reach it.
        watched: How to notice its end, None where that cannot be seen.
        handle: Its handle, None for an exported one.
    """

    descriptor: Descriptor
    watched: Watched | None
    handle: ClusterHandle | None


def kept(target: Target) -> KeptTarget:
    """Wrap an exported handle in `Secret`: it holds the cluster's secret.

    It may come from a file, with the end of its line, or be taken for a path.
    """
    if isinstance(target, (str, os.PathLike)):
        text = os.fsdecode(target).strip()
        if is_export(text):
            return Secret(text)
    return target


def find_cluster(target: KeptTarget, scratch: Path | None) -> FoundCluster:
    """Find the cluster that a target names. Blocks.

    Args:
        target: What `kept` made of that of `MemoryCluster.attach`.
        scratch: Where names are looked up, as in `MemoryConfig`.

    Raises:
        ClusterNotFoundError: If there is none.
        PersistError: If it is a memory's folder, and that is damaged.
    """
    if isinstance(target, Secret):
        descriptor = read_export(target)
        return FoundCluster(descriptor, watched_file(descriptor), None)
    handle = _handle(target, scratch)
    by_name = isinstance(target, str) and _is_name(target)
    return FoundCluster(handle.read(), Watched(Path(handle.descriptor), by_name), handle)


def _is_name(target: str) -> bool:
    return not target or _NAME.match(target) is not None


def _handle(target: Target, scratch: Path | None) -> ClusterHandle:
    if isinstance(target, ClusterHandle):
        return target
    if target is None:
        named = os.environ.get(DESCRIPTOR_VARIABLE)
        if not named:
            raise ClusterNotFoundError(
                f"attach() was given no handle or name, and ${DESCRIPTOR_VARIABLE} is not set"
            )
        if is_export(named.strip()):
            raise ClusterNotFoundError(
                f"${DESCRIPTOR_VARIABLE} is an exported handle, which holds the cluster's secret. "
                "Other programs can read an environment: give it to attach() from a file, or set "
                "the variable to a descriptor's path"
            )
        return _at(Path(named), scratch)
    if not isinstance(target, str):
        return _at(_path(target), scratch)
    if _is_name(target):
        return _named(target, scratch)
    return _at(_path(target), scratch)


def _path(target: str | os.PathLike[str]) -> Path:
    try:
        return Path(user_path(os.fspath(target)))
    except ValueError as error:
        raise ClusterNotFoundError(f"{target}: {error}") from error


def _named(name: str, scratch: Path | None) -> ClusterHandle:
    return ClusterHandle(name, str(descriptor_of(name, scratch)))


def _at(path: Path, scratch: Path | None) -> ClusterHandle:
    """The cluster of a descriptor file, of a folder with such a file, or of a `persist_path`."""
    try:
        path = trusted_path(path)
        is_folder = path.is_dir()
        if is_folder:
            check_folder(path)
    except UntrustedPathError as error:
        raise ClusterNotFoundError(str(error)) from error
    if is_folder:
        if (path / DESCRIPTOR).exists():
            return ClusterHandle(path.name, str(path / DESCRIPTOR))
        return _of_memory(path, scratch)
    if path.name != DESCRIPTOR and not path.exists():
        raise ClusterNotFoundError(
            f"no cluster is at {path}: there is no such file or folder, and it is no cluster's name"
        )
    return ClusterHandle(path.parent.name, str(path))


def _of_memory(path: Path, scratch: Path | None) -> ClusterHandle:
    """The cluster that has opened the memory in a folder."""
    manifest = read_manifest(path)
    if manifest is None:
        raise ClusterNotFoundError(
            f"{path} is no cluster's folder: it has neither {DESCRIPTOR} nor {MANIFEST}"
        )
    if not is_held(path):
        raise ClusterNotFoundError(
            f"no cluster has the memory in {path} open: open it, with "
            "MemoryCluster(persist_path=...)"
        )
    try:
        return _named(manifest.name, scratch)
    except ClusterNotFoundError as error:
        raise ClusterNotFoundError(
            f"the memory in {path} is open in {read_lock_owner(path)}, which cannot be attached to "
            "from here: it is in local mode, on another node, or has another scratch="
        ) from error
