# What .ci/run does, with the newest releases of everything; those that pass become the pinned ones.
.PHONY: newest
newest:
	CONSTRAINTS=/dev/null FREEZE_TO=.ci/constraints.txt .ci/run

# Known vulnerabilities of the pinned versions. Needs PyPI's own service; a mirror does not have it.
.PHONY: audit
audit:
	.ci/audit
