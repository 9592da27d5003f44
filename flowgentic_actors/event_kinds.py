"""The kinds of a cluster's events."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class EventKind(StrEnum):
    """The kind of an event: `ClusterEvent.kind`."""

    ACTOR_ANSWERS = "actor_answers"
    """An actor that was silent answers again."""
    ACTOR_EXITED = "actor_exited"
    """An actor's process has ended; the next one is started."""
    ACTOR_FAILED = "actor_failed"
    """An actor ended too often, or cannot start: it is not started any more."""
    ACTOR_HOSTED = "actor_hosted"
    """An actor runs in its supervisor's process, since no process of its own could be started."""
    ACTOR_KILLED = "actor_killed"
    """An actor did not end in time when the cluster was closed, and was killed."""
    ACTOR_LINGERS = "actor_lingers"
    """An actor was killed and is not gone yet, so the next one has to wait."""
    ACTOR_RUNNING = "actor_running"
    """An actor serves."""
    ACTOR_SILENT = "actor_silent"
    """An actor has not answered for 3 s."""
    ACTOR_STOPPED = "actor_stopped"
    """An actor has ended in order."""
    CLUSTER_CLOSING = "cluster_closing"
    """The cluster is being closed, and why."""
    CLUSTER_OPENED = "cluster_opened"
    """The cluster serves."""
    DDICT_GIVEN_UP = "ddict_given_up"
    """No DDict is made any more; cold values are read from the journal."""
    DDICT_LOST = "ddict_lost"
    """A shard's DDict is gone; nothing is lost with it."""
    DDICT_READY = "ddict_ready"
    """A shard's DDict was made."""
    DRAGON_HUNG = "dragon_hung"
    """Dragon does not answer any more; actors go on without it."""
    FALLBACK_TO_LOCAL = "fallback_to_local"
    """A distributed cluster could not be opened, so the memory is in this process."""
    FEWER_NODES = "fewer_nodes"
    """The cluster was opened on fewer nodes than were asked for."""
    HOST_RESTARTED = "host_restarted"
    """The cluster's host had ended, and was started again."""
    JOURNAL_IN_MEMORY = "journal_in_memory"
    """The scratch folder is in memory, so journals take memory."""
    LOOP_BLOCKED = "loop_blocked"
    """A program with calls under way did not turn its event loop for a second or more; told at most
    once in 10 s."""
    MEMORY_LOST = "memory_lost"
    """The lock of a local memory's folder was lost to another program."""
    NODE_GIVEN_UP = "node_given_up"
    """A node's program keeps ending and is not started any more."""
    NODE_LOST = "node_lost"
    """Nothing was heard of a node for `node_timeout`; others take its place."""
    NODE_MISSING = "node_missing"
    """A node did not join, or not again."""
    NODE_RETURNED = "node_returned"
    """A node that was lost is there again."""
    ORPHAN_REOPENED = "orphan_reopened"
    """The memory was left by a cluster that was not closed."""
    OUT_OF_FILES = "out_of_files"
    """A host or node has no open file to spare, and what needs one waits."""
    PERSIST_REOPENED = "persist_reopened"
    """A memory was found at `persist_path`."""
    PLAN_NOT_WRITTEN = "plan_not_written"
    """The host's disk is full: what was decided is not in force until it is stored."""
    REBALANCED = "rebalanced"
    """All slots are where they should be."""
    REBALANCE_BEGUN = "rebalance_begun"
    """Slots are about to move."""
    REBALANCE_FAILED = "rebalance_failed"
    """Not all slots are where they should be, and why."""
    REPLICA_BEGUN = "replica_begun"
    """A second copy of a shard is being made."""
    REPLICA_READY = "replica_ready"
    """A second copy has everything that was acknowledged."""
    RESHARDED = "resharded"
    """A memory was opened with another number of actors than before."""
    SHARD_FOUND = "shard_found"
    """The node of a lost shard is there again, and the shard with it."""
    SHARD_LOST = "shard_lost"
    """A shard's node was lost, and there is no other copy."""
    SHARD_MOVED = "shard_moved"
    """A lost node's shard is opened on another node from `persist_path`."""
    SHARD_PROMOTED = "shard_promoted"
    """The second copy of a shard answers in the place of a lost one."""
    SLOTS_MOVED = "slots_moved"
    """Another shard answers for some slots."""
    SLOTS_NOT_TAKEN = "slots_not_taken"
    """A shard could not take slots over, and why; they stay where they are."""
    SLOTS_STAYED = "slots_stayed"
    """An attempt to move slots was given up, and why."""
    SLOW_REQUEST = "slow_request"
    """One request, or one page of an answer, for which others waited for a quarter of a second or
    more; told at most once in 10 s by each shard."""
    WALLTIME_UNKNOWN = "walltime_unknown"
    """The job's end could not be found out, so the cluster is not closed before it."""


WARNINGS: Final = frozenset(
    {
        EventKind.ACTOR_EXITED,
        EventKind.ACTOR_FAILED,
        EventKind.ACTOR_HOSTED,
        EventKind.ACTOR_KILLED,
        EventKind.ACTOR_LINGERS,
        EventKind.ACTOR_SILENT,
        EventKind.DDICT_GIVEN_UP,
        EventKind.DDICT_LOST,
        EventKind.DRAGON_HUNG,
        EventKind.FEWER_NODES,
        EventKind.HOST_RESTARTED,
        EventKind.NODE_GIVEN_UP,
        EventKind.NODE_LOST,
        EventKind.NODE_MISSING,
        EventKind.OUT_OF_FILES,
        EventKind.PLAN_NOT_WRITTEN,
        EventKind.REBALANCE_FAILED,
        EventKind.SHARD_LOST,
    }
)
"""Kinds of events that are logged as warnings in all programs that use the cluster."""
