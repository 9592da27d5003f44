"""The settings of a `MemoryCluster`, checked before anything starts."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, Self

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, model_validator
from typing_extensions import TypedDict

from flowgentic_actors.acknowledgement import ACKS, Ack, AckName
from flowgentic_actors.config_modes import (
    asks_for_processes,
    without_effect_in_subprocesses,
    without_effect_locally,
)
from flowgentic_actors.config_values import Bytes, Settings, TypeName, UserPath, known_keys

Mode = Literal["auto", "local", "distributed"]
Spawner = Literal["auto", "dragon", "subprocess"]

NAME_PATTERN = r"^[a-z0-9-]{1,40}$"

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
MiB = 2**20


class StoreTTL(TypedDict, total=False):
    """LangGraph's `TTLConfig`, checked."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    refresh_on_read: bool
    omit_expired: bool
    default_ttl: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    sweep_interval_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None


def _embeds(embed: Any) -> Any:
    if callable(embed) or isinstance(embed, str) or hasattr(embed, "embed_documents"):
        return embed
    raise ValueError(
        "must be a function of a list of texts, sync or async, a LangChain Embeddings, or its name"
    )


def _exact_search(config: Any) -> Any:
    plain = {"kind": "flat", "vector_type": "vector"}
    if isinstance(config, dict) and config and config.items() <= plain.items():
        return config  # exact search, which is what there is
    raise ValueError(
        "is refused: searches compare all vectors, as 32-bit floats, and are exact without an "
        "approximate index. Leave it out, or set {'kind': 'flat'}"
    )


def _fields_alone(text_fields: list[str] | None, given: ValidationInfo) -> list[str] | None:
    if text_fields and given.data.get("fields") not in (None, text_fields):
        raise ValueError("is another name of 'fields', which says something else: give one of them")
    return text_fields


def _refused(instead: str) -> AfterValidator:
    def refuse(_: Any) -> Any:
        raise ValueError(f"is not a key of this index: {instead}")

    return AfterValidator(refuse)


_FULL_PRECISION = "vectors are kept as 32-bit floats, which makes scores exact. Leave it out"


def _network(text: str) -> str:
    if "/" in text:
        ipaddress.ip_network(text, strict=False)
    return text


class StoreIndex(TypedDict):
    """LangGraph's `IndexConfig`, with what its `PostgresStore` and `SqliteStore` add, checked.

    `distance_type` says what the score of a search is, as in `PostgresStore`: the cosine similarity
    (`"cosine"`, the default), the Euclidean distance with a minus sign (`"l2"`), or the inner
    product (`"inner_product"`). The largest score comes first.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    dims: Annotated[int, Field(ge=1, le=65_536, strict=True)]
    embed: Annotated[Any, AfterValidator(_embeds)]
    distance_type: NotRequired[Literal["cosine", "l2", "inner_product"]]
    fields: NotRequired[list[str] | None]
    text_fields: NotRequired[Annotated[list[str] | None, AfterValidator(_fields_alone)]]
    ann_index_config: NotRequired[Annotated[Any, AfterValidator(_exact_search)]]
    vector_type: NotRequired[Annotated[Any, _refused(_FULL_PRECISION)]]
    quantization: NotRequired[Annotated[Any, _refused(_FULL_PRECISION)]]
    metric: NotRequired[Annotated[Any, _refused("use distance_type")]]


class MemoryConfig(Settings):
    """The settings of a `MemoryCluster`; unknown names are refused.

    Times are seconds, sizes are bytes or text such as `"512 MiB"`, and `~` in paths is the home
    directory. A setting that the chosen mode does not have is refused, too, if it is given and not
    the default.
    """

    mode: Mode = "auto"
    """`"local"`: in this process. `"distributed"`: actors in processes of their own. `"auto"`:
    distributed inside a Dragon runtime or a scheduler's job, and where a setting asks for it
    (`spawner`, `name`, `n_nodes` and `actors_per_node` above 1, `replicas=2`, `ack="replica"`);
    local elsewhere."""

    spawner: Spawner = "auto"
    """Who starts the actors when the cluster is distributed: `"dragon"`, plain `"subprocess"` on
    this node, or `"auto"`, which is Dragon."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Name to attach by, unique among this user's live clusters on the node. In local mode, which
    cannot be attached to, the name under which a memory at `persist_path` is held. Default:
    random."""

    n_nodes: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Nodes to use of those that there are in the Dragon runtime, or in the scheduler's job; this
    one is the first. With `spawner="subprocess"`, as many groups of processes on this machine,
    which stand for nodes: to try things out. Default: all nodes, or this machine."""

    replicas: Literal[1, 2] = 1
    """Copies of each shard, on different nodes. With two, the loss of a node other than the host's
    costs nothing that was acknowledged with `ack="replica"`."""

    degrade: bool = False
    """With `ack="replica"`, while there is one copy only: acknowledge what is in that one, instead
    of having writes wait for a second one (`ReplicaUnavailableError` if none comes)."""

    node_timeout: Annotated[float, Field(ge=1, le=3600, allow_inf_nan=False)] = 3.0
    """Silence after which a node counts as lost. Its actors answer nothing from a little earlier
    on, so that no shard is ever answered for in two places."""

    network: Annotated[str, Field(min_length=1), AfterValidator(_network)] | None = None
    """Which network nodes reach each other by: the beginning of an interface's name (`"hsn"`), or
    a network (`"10.1.0.0/16"`). Default: a high-speed network if there is one, otherwise that with
    the default route."""

    actors_per_node: Annotated[int, Field(ge=1, le=256)] = 1
    """Memory actors on each node; the slots are divided evenly among them."""

    namespace_depth: Annotated[int, Field(ge=1, le=16)] = 2
    """Leading labels of a namespace that decide an item's shard: a search below that many labels
    asks one shard, a wider one asks all."""

    fallback_to_local: bool = True
    """Without Dragon, go on in local mode (and say so once) instead of raising; never with
    `persist_path`, `ack="disk"` or `replicas=2`, which a local cluster would not keep."""

    scratch: UserPath | None = None
    """Folder for sockets and, without `persist_path`, journals: node-local and not in
    `/dev/shm`. Sockets are below `/tmp` where its path is too long for them. Default: `$TMPDIR`."""

    persist_path: UserPath | None = None
    """Folder that keeps the memory beyond the cluster's end, on a disk that the next job can
    reach; opened again by the next cluster that is given it, in any mode and with any number of
    actors. It is made when it is not there. Default: the memory ends with its cluster."""

    orphan_ttl: Annotated[float, Field(ge=0, le=31 * 86_400, allow_inf_nan=False)] = 86_400.0
    """Seconds for which the memory of a cluster without `persist_path` is kept in `scratch` after
    an unclean end; a cluster of the same `name` reopens it. 0: it is removed by the next one."""

    orphan_bytes: Annotated[Bytes, Field(ge=0, le=2**60)] = 10 * 1024 * MiB
    """Bytes that all such memories may take; the oldest are removed first."""

    ack: AckName = "node"
    """When a write is acknowledged: `"node"`: once it survives the death of any process of the
    node. `"replica"`: once it survives the loss of a node too (`replicas=2`). `"disk"`: once it
    survives the loss of power, if `persist_path` (without it, `scratch`) is on a real disk."""

    hot_memory: Annotated[Bytes, Field(ge=1 * MiB, le=2**50)] = 1024 * MiB
    """Bytes of values that each actor of a distributed cluster keeps in its own memory. The others
    come from the actor's DDict, or from its journal where there is none. A local cluster keeps all
    values in memory."""

    store_total_mem: Annotated[Bytes, Field(ge=1 * MiB, le=2**50)] | None = None
    """Quota of the bytes of all store items; beyond it a write is refused with `MemoryFullError`.
    Each shard has its part of it. With Dragon the DDicts get room for it in `/dev/shm`. Default:
    no quota, and DDicts of a quarter of what is free there."""

    checkpoint_total_mem: Annotated[Bytes, Field(ge=1 * MiB, le=2**50)] | None = None
    """The same for all threads: checkpoints, channel values and pending writes."""

    cache_total_mem: Annotated[Bytes, Field(ge=1 * MiB, le=2**50)] = 256 * MiB
    """Bytes that cached values take at most; the least recently used ones go first. They are in the
    actors' memory alone, and an actor that is restarted begins with an empty cache."""

    checkpoint_ttl: Annotated[float, Field(gt=0, le=10**10, allow_inf_nan=False)] | None = None
    """Time after its last write for which a thread is kept. Default: for ever."""

    keep_last: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """Checkpoints to keep of each namespace of a thread, and those that the delta channels of
    these are made from; older ones are forgotten as new ones come. Default: all."""

    detect_conflicts: bool = False
    """Refuse a checkpoint that does not follow its thread's latest one, because another program
    wrote to the thread meanwhile, with `ThreadConflictError`. Forks by time travel are no conflict.
    Default: it forks the thread."""

    thread_backlog: Annotated[Bytes, Field(ge=64 * 1024, le=2**40)] = 64 * MiB
    """Bytes that may wait to be acknowledged for one thread in one process. Further writes wait for
    their turn, in order; one that waited for all of `request_timeout` gets `BackpressureError`."""

    ttl: Annotated[StoreTTL, known_keys(StoreTTL)] | None = None
    """LangGraph's `TTLConfig` of the store: `default_ttl` (minutes), `refresh_on_read` (True),
    `omit_expired` (True: an item whose time is over is not given out, False: until it is swept),
    `sweep_interval_minutes` (a second)."""

    index: Annotated[StoreIndex, known_keys(StoreIndex)] | None = None
    """LangGraph's `IndexConfig` of the store, for searches by similarity: `dims`, `embed` (a
    function, sync or async, or a LangChain `Embeddings`), `fields` (`["$"]`). The function is not
    sent to other programs: those that attach to put or search items give one, too. The rest is kept
    with the memory, and what does not agree with it is refused."""

    reindex: bool = False
    """Open a memory whose vectors have other `dims` than `index` says, which is refused otherwise.
    An item is found by similarity again once it has been put again."""

    allowed_types: tuple[TypeName, ...] | None = None
    """Types, apart from plain values and LangGraph's own, that this program decodes stored values
    to: classes, or (module, name). An object of any other type is refused with
    `TypeNotAllowedError`, and nothing of it is imported or called; `()` names none. Types that come
    by `with_allowlist` are allowed, too. Each program that attaches decides for itself, and a
    serializer that is passed or assigned (`serde`) decides by itself: see `StrictSerializer`.
    Default: any type that can be imported, as in LangGraph, so that who can write to the memory
    runs code in its readers; or, where `LANGGRAPH_STRICT_MSGPACK` is set, none."""

    managers_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that hold the values of each actor's DDict."""

    segment_bytes: Annotated[Bytes, Field(ge=64 * 1024, le=2**32)] = 16 * MiB
    """Size of the files that a shard's journal is made of. A journal is compacted when more than
    half of it, and more than one such file, is dead."""

    request_timeout: Seconds = 30.0
    """Deadline of one call on the memory, restarts of its actor included. Time in which the event
    loop is blocked, or the program is stopped, does not count."""

    open_timeout: Seconds = 60.0
    """Deadline of opening the cluster."""

    rendezvous: UserPath | None = None
    """Folder in which the ranks of one job step (`srun -N 4 python program.py`) find the cluster
    that the first of them opens; all nodes must see it. Default: `.flowgentic` in the home."""

    ranks_timeout: Annotated[float, Field(ge=0, le=31 * 86_400, allow_inf_nan=False)] = 86_400.0
    """How long the first rank's cluster stays open at most, when its own program is done with it,
    for other ranks that still use it."""

    close_timeout: Seconds = 10.0
    """Deadline of an orderly end, after which what is left is killed."""

    stop_signal: Literal["SIGUSR1", "SIGUSR2"] | None = None
    """A scheduler's warning, such as `sbatch --signal=USR1@60` sends, at which the cluster ends its
    work in order: what was accepted is finished, further calls get `ClusterClosingError`."""

    stop_file: UserPath | None = None
    """A file at whose appearance the cluster ends its work in order."""

    walltime_margin: Seconds | None = None
    """Seconds before the end of the scheduler's job at which the cluster ends its work in order."""

    heartbeat_interval: Seconds = 0.5
    """Time between two pings from the supervisor to an actor."""

    hang_timeout: Seconds = 15.0
    """Silence after which an actor counts as hung (stopped or stuck), is killed and restarted."""

    busy_timeout: Seconds = 120.0
    """Time that one request may keep an actor from all others before it counts as hung."""

    restart_intensity: Annotated[int, Field(ge=0, le=100_000)] = 10
    """Restarts of one actor, or of the host, allowed within `restart_period`. Beyond them the host
    serves the actor itself, degraded; the cluster of a host that keeps dying has failed."""

    restart_period: Seconds = 30.0
    """The period of `restart_intensity`."""

    rejoin_grace: Seconds = 60.0
    """Time that an actor whose host is silent (for `hang_timeout`) answers nothing and waits for it
    before it ends."""

    mailbox_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Requests that wait in an actor's mailbox before it stops reading."""

    mailbox_bytes: Annotated[Bytes, Field(ge=1 * MiB, le=2**40)] = 256 * MiB
    """Bytes of requests that wait in an actor's mailbox before it stops reading."""

    max_message_bytes: Annotated[Bytes, Field(ge=4 * MiB, le=2**31 - 1)] = 512 * MiB
    """Largest single request or reply, such as one checkpoint with all its values."""

    connection_pool: Annotated[int, Field(ge=1, le=1024)] = 16
    """Blocking connections to each actor that sync calls share."""

    stay_awake: Annotated[float, Field(ge=0, le=0.01, allow_inf_nan=False)] = 0.0002
    """Time for which a caller that waits for an answer, and an actor whose requests come one after
    the other, go on looking for a message before they sleep: waking up would take longer than the
    message does. 0: they sleep at once, which takes less processor time. So they do where a process
    may use one processor only, or other processes need the processors."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hang_timeout <= 2 * self.heartbeat_interval:
            raise ValueError(
                f"hang_timeout ({self.hang_timeout} s) must be more than twice "
                f"heartbeat_interval ({self.heartbeat_interval} s): one lost ping is not a hang"
            )
        if self.busy_timeout < self.hang_timeout:
            raise ValueError(
                f"busy_timeout ({self.busy_timeout} s) must be at least hang_timeout "
                f"({self.hang_timeout} s)"
            )
        self._check_mode()
        if self.reindex and self.index is None:
            raise ValueError("reindex=True needs index=, by which items are embedded from now on")
        self._check_replicas()
        if self.mode == "local" and self.acknowledged.durable and self.persist_path is None:
            raise ValueError(
                f"ack={self.ack!r} needs persist_path= or mode='distributed': without them the "
                "memory of a local cluster has no journal"
            )
        if self.scratch is not None and self.scratch.is_relative_to("/dev/shm"):  # noqa: S108
            raise ValueError("scratch must not be in /dev/shm: dragon-cleanup empties it")
        self._check_persist_path()
        return self

    @property
    def acknowledged(self) -> Ack:
        """What is true of a write once it is acknowledged, as `ack` says."""
        return ACKS[self.ack]

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given and differ from their defaults."""
        fields = type(self).model_fields
        return {
            name: value
            for name in fields
            if name in self.model_fields_set
            and (value := getattr(self, name)) != fields[name].default
        }

    @property
    def asks_for_processes(self) -> tuple[str, ...]:
        """The settings for which `mode="auto"` means a distributed cluster."""
        return asks_for_processes(self.given)

    def wants_processes(self, *, inside_job: bool) -> bool:
        """Whether to try a distributed cluster.

        Args:
            inside_job: Whether this process is in a Dragon runtime or a scheduler's job.
        """
        if self.mode == "auto":
            return inside_job or bool(self.asks_for_processes)
        return self.mode == "distributed"

    @property
    def may_fall_back(self) -> bool:
        """Whether a local cluster will do where there can be no distributed one.

        A memory that was to outlive the job must not silently become one that does not.
        """
        durable = self.acknowledged.durable
        lasts = self.persist_path is not None or durable or self.replicas > 1
        return self.fallback_to_local and not lasts

    @property
    def without_effect_locally(self) -> tuple[str, ...]:
        """The settings that a local cluster, such as the fallback, does not have."""
        return without_effect_locally(self.given)

    @property
    def folders(self) -> str:
        """The paths that the cluster uses, as text for an error."""
        named = ("persist_path", "scratch", "rendezvous", "stop_file")
        paths = {name: path for name in named if (path := getattr(self, name)) is not None}
        paths.setdefault("scratch", tempfile.gettempdir())
        return ", ".join(f"{name}={path}" for name, path in paths.items())

    def _check_mode(self) -> None:
        if self.mode == "local" and (missing := self.without_effect_locally):
            raise ValueError(
                f"local mode does not have {', '.join(missing)}: it is one shard in this process, "
                "without processes, sockets, other nodes or, unless persist_path is set, a "
                "journal. Leave the setting out, or set mode='distributed'"
            )
        if self.spawner == "subprocess" and (missing := without_effect_in_subprocesses(self.given)):
            raise ValueError(
                f"spawner='subprocess' does not have {', '.join(missing)}: all its processes are "
                "on this machine, and there is no DDict. Leave the setting out"
            )

    def _check_replicas(self) -> None:
        waits = self.acknowledged.waits_for_follower
        if waits and self.replicas == 1:
            raise ValueError(
                f"ack={self.ack!r} needs a second copy on another node: set replicas=2"
            )
        if self.degrade and not waits:
            raise ValueError("degrade=True is about ack='replica', which is not set")
        if self.replicas == 1:
            return
        if self.n_nodes == 1:
            raise ValueError("replicas=2 needs a second node: leave n_nodes out, or set it higher")
        if self.persist_path is not None or self.acknowledged.durable:
            raise ValueError(
                "replicas=2 does not go with persist_path or ack='disk': the copies are on the "
                "nodes' own disks. Choose replicas, which are fast and end with the job, or "
                "persist_path, which a lost node's shards are read from on another node"
            )

    def _check_persist_path(self) -> None:
        if self.persist_path is None:
            return
        path = self.persist_path  # asking where the program is would block an event loop
        if path.is_relative_to("/dev/shm"):  # noqa: S108
            raise ValueError(
                "persist_path must not be in /dev/shm: it is memory of this node, and "
                "dragon-cleanup empties it"
            )
        if self.scratch is not None and path.is_relative_to(self.scratch):
            raise ValueError(
                f"persist_path must not be in scratch ({self.scratch}), which need not outlive "
                "the job"
            )


def config_of(config: object, settings: Mapping[str, Any]) -> MemoryConfig:
    """Make a configuration from one that is given, or from its fields.

    Raises:
        TypeError: If it was given in neither way, or in both.
        pydantic.ValidationError: If a setting is unknown or impossible.
    """
    if config is None:
        return MemoryConfig(**settings)
    if settings:
        raise TypeError("give either a MemoryConfig or its fields as keywords, not both")
    if isinstance(config, MemoryConfig):
        return config
    what = f"MemoryCluster() takes settings by name, or a MemoryConfig, not {config!r:.80}"
    if isinstance(config, (str, os.PathLike)):
        what += f". For a memory in a folder: MemoryCluster(persist_path={str(config)!r})"
    elif isinstance(config, Mapping):
        what += ". Unpack the mapping: MemoryCluster(**settings)"
    raise TypeError(what)
