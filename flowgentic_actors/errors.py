"""Every error of the package, one tree with one root.

    FlowgenticError
    ├── ClusterError                  opening, attaching, closing
    │   ├── ClusterOpenError          the cluster could not be opened
    │   │   ├── DragonUnavailableError
    │   │   └── SharedMemoryError     /dev/shm is too small for what was asked
    │   ├── ClusterExistsError        another live cluster has that name
    │   ├── ClusterNotFoundError      nothing to attach to
    │   ├── PersistError              a memory on disk cannot be opened
    │   │   └── PersistHeldError      another live cluster has it open
    │   ├── UntrustedPathError        another user owns or may change a file or folder; an OSError
    │   ├── ClusterClosedError        used before it was opened or after it was closed
    │   └── LocalClusterError         asked of a local cluster what only processes can do
    ├── RequestError                  a call on the memory failed
    │   ├── NotSentError              it never left this process, or was a read: nothing happened
    │   │   ├── ActorUnavailableError the actor was out of reach until the deadline
    │   │   ├── BackpressureError     its turn to be sent did not come before the deadline
    │   │   └── ShardLostError        the shard's node is lost, and it had the only copy
    │   ├── OutcomeUnknownError       it was sent and not answered: it may have happened
    │   ├── TypeNotAllowedError       what was read has an object of a type that is not decoded
    │   ├── PartialFailureError       of the shards that it concerns some answered, others did not
    │   └── RejectedError             the actor refused it: nothing happened
    │       ├── InvalidRequestError   the request itself is wrong; a ValueError
    │       │   └── NotSerializableError  a value cannot be serialized (a TypeError, too)
    │       ├── ConflictError         another writer was faster
    │       │   ├── ThreadConflictError   a checkpoint does not follow its thread's latest
    │       │   └── VersionConflictError  an item has not the version that was expected
    │       ├── RequestExpiredError   its deadline passed while it waited in the mailbox
    │       ├── StorageError          the actor cannot write its journal: the disk is full, or fails
    │       │   ├── MemoryFullError   the shard holds as much as it may
    │       │   └── ReplicaUnavailableError   there is no second copy now
    │       ├── SlotsMovedError       the key moves to another shard, and did until the deadline
    │       ├── ClusterClosingError   the cluster is ending, or has ended in order
    │       └── MemoryFailedError     a shard, or the whole cluster, has failed for good
    ├── ActorError                    the kernel: an actor's life
    │   ├── ActorStartError           it did not come up
    │   └── ActorFailedError          it failed too often and is not restarted
    ├── WireError                     bytes that are not our protocol
    │   ├── ProtocolError             garbage, truncated, replayed or out of order
    │   ├── LimitExceededError        larger than the limits allow
    │   └── AuthenticationError       the peer does not know the cluster's secret
    ├── JournalError                  a shard's journal
    │   ├── JournalDamagedError       bytes in it are not what was written
    │   └── JournalLockedError        another process has it open
    ├── ColdValuesError               within a shard: values have to be fetched first
    └── TierError                     the DDict behind a shard; the shard goes on without it
        ├── TierLostError             there is none now; what was in it is gone
        ├── TierFullError             there is no room for that value
        └── TierBusyError             too many calls wait for it already

A configuration that cannot work is refused by pydantic (``pydantic.ValidationError``) when it is
constructed, with the field's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class FlowgenticError(Exception):
    """Root of all errors that this package raises."""


class ClusterError(FlowgenticError):
    """Opening, attaching to, or closing a cluster failed."""


class ClusterOpenError(ClusterError):
    """The cluster could not be opened; nothing of it is left running."""


class DragonUnavailableError(ClusterOpenError):
    """Distributed mode was asked for and Dragon cannot run here."""


class SharedMemoryError(ClusterOpenError):
    """Less of `/dev/shm` is free than the configured memory needs."""


class ClusterExistsError(ClusterError):
    """A live cluster of this user has that name already."""


class ClusterNotFoundError(ClusterError):
    """There is no cluster behind that handle or name."""


class PersistError(ClusterError):
    """A memory on disk is not there, not whole, or not of this version; nothing was changed."""


class PersistHeldError(PersistError):
    """Another live cluster has the memory open.

    Attributes:
        dead_in: Seconds until its holder counts as dead if it stays silent; None when it lives.
    """

    def __init__(self, message: str, *, dead_in: float | None = None) -> None:
        super().__init__(message)
        self.dead_in = dead_in


class UntrustedPathError(ClusterError, PermissionError):
    """A file or folder belongs to another user, or others may change or exchange it.

    The text names it, its owner and mode, and what to do. Nothing was read or written.
    """


class ClusterClosedError(ClusterError):
    """The cluster was used before it was opened or after it was closed."""


class LocalClusterError(ClusterError):
    """A local cluster lives in one process and was asked to reach beyond it."""


class RequestError(FlowgenticError):
    """A call on the memory failed; the subclass says whether it may have happened."""


class NotSentError(RequestError):
    """The request never left this process, or was a read. Nothing happened: try again safely."""


class ActorUnavailableError(NotSentError):
    """The actor could not be reached, or did not answer a read, before the deadline."""


class BackpressureError(NotSentError):
    """The actor's mailbox, or the thread's backlog, stayed full until the deadline."""


class ShardLostError(NotSentError):
    """The node of the shard is lost, and no other has a copy; other shards serve."""


class OutcomeUnknownError(RequestError):
    """The write was sent and no answer came: it may or may not have happened.

    Attributes:
        reason: Why there is no answer, without what that means for a write; may be empty.
        ask_again: Whether a read that ended so is worth asking again.
    """

    def __init__(self, message: str = "", *, reason: str = "", ask_again: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.ask_again = ask_again


class TypeNotAllowedError(RequestError):
    """A stored value has an object of a type that is not decoded here; none was made.

    The text names the type. Which are decoded: `allowed_types` and `LANGGRAPH_STRICT_MSGPACK`.
    """


class PartialFailureError(RequestError):
    """A call that concerns several shards succeeded on some of them and failed on others.

    Attributes:
        failed: The error of each shard that failed, by its number.
        shards: Shards that were asked.
    """

    def __init__(self, failed: Mapping[int, Exception], shards: int) -> None:
        reasons = {str(error): None for error in failed.values()}  # each once, in order
        super().__init__(
            f"{shards - len(failed)} of {shards} shards answered, which is not all that was asked "
            f"for. The others: {'; '.join(reasons)}"
        )
        self.failed = dict(failed)
        self.shards = shards


class RejectedError(RequestError):
    """The actor refused the request. Nothing happened."""


class InvalidRequestError(RejectedError, ValueError):
    """The request cannot be carried out as it stands; sending it again will not help."""


class NotSerializableError(InvalidRequestError, TypeError):
    """A value cannot be serialized; the text names the item or channel. Nothing happened."""


class ConflictError(RejectedError):
    """Another writer changed the data in between: read again, and decide anew."""


class ThreadConflictError(ConflictError):
    """The checkpoint does not follow the latest one of its thread (`detect_conflicts`)."""


class VersionConflictError(ConflictError):
    """The item does not exist in the version that was expected.

    Attributes:
        found: The version that it has, 0 when there is none.
    """

    def __init__(self, message: str, found: int) -> None:
        super().__init__(message)
        self.found = found


class RequestExpiredError(RejectedError):
    """The request's deadline passed while it waited in the mailbox; it was not carried out."""


class StorageError(RejectedError):
    """The actor could not append to its journal, so it carried out nothing."""


class MemoryFullError(StorageError):
    """The shard holds as much as its quota allows; deletes make room, and nothing is lost."""


class ReplicaUnavailableError(StorageError):
    """There is no second copy of the shard now, and `ack="replica"` promises one (`degrade`)."""


class SlotsMovedError(RejectedError):
    """The slot of the request moves, or has moved, to another shard.

    The client asks there by itself. Users see this when it lasts until their deadline.
    """


class ClusterClosingError(RejectedError):
    """The cluster is ending, or has ended in order; the text says what asked for that."""


class MemoryFailedError(RejectedError):
    """The shard, or the whole cluster, failed more often than is allowed and is not restarted."""


class ActorError(FlowgenticError):
    """An actor failed to start or to stay alive; not about a request."""


class ActorStartError(ActorError):
    """An actor did not come up before its deadline."""


class ActorFailedError(ActorError):
    """An actor failed more often than its restart intensity allows."""


class WireError(FlowgenticError):
    """Unacceptable data arrived on a connection, which is closed."""


class ProtocolError(WireError):
    """Garbage, truncated, replayed or out-of-order bytes."""


class LimitExceededError(WireError):
    """A frame or message larger than the limits allow."""


class AuthenticationError(WireError):
    """The peer could not prove that it knows the cluster's secret."""


class JournalError(FlowgenticError):
    """A shard's journal cannot be used."""


class JournalDamagedError(JournalError):
    """The journal holds bytes that are not what was written."""


class JournalLockedError(JournalError):
    """Another process has the journal open."""


class ColdValuesError(FlowgenticError):
    """A query needs values that are not in memory; it never leaves the shard.

    Attributes:
        lsns: Addresses of the journal entries that hold them.
    """

    def __init__(self, lsns: tuple[int, ...]) -> None:
        super().__init__(f"{len(lsns)} journal entries have to be read first")
        self.lsns = lsns


class TierError(FlowgenticError):
    """A call on a shard's DDict failed; the shard is complete without it."""


class TierLostError(TierError):
    """There is no DDict: not yet, or it was given up with its content."""


class TierFullError(TierError):
    """The DDict has no room for that value; it goes on with those that it has."""


class TierBusyError(TierError):
    """The DDict's queue of calls is full; nothing was sent to it."""
