.PHONY: help check test test-slow docs demo newest audit

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

check: ## Lint, formatting, types, layers
	ruff check .
	ruff format --check .
	mypy
	lint-imports

test: ## Tests of an inner loop
	pytest -n 2

test-slow: ## The long forms
	pytest -n 2 -m slow

docs: ## Build the documentation into site/; a dead link fails
	NO_MKDOCS_2_WARNING=1 mkdocs build

demo: ## A supervised memory on this machine
	flowgentic-actors demo

newest: ## .ci/run with the newest releases of everything; those that pass become the pinned ones
	CONSTRAINTS=/dev/null FREEZE_TO=.ci/constraints.txt .ci/run

audit: ## Look up known vulnerabilities of the pinned versions; needs PyPI's own service, a mirror has none
	.ci/audit
