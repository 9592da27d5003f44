"""`flowgentic-actors bench`: contenders, workloads, measurement and reports.

`subjects` and `contenders` (with `peers`, `plain_redis` and `raw_ddict`) say who; `workloads` and
the modules of its groups say what; `measuring` lets them take turns. `conversation`, `growth`,
`cold` and `footprint` are studies: each needs another course than turns. `results` is what comes
out, `report`, `markdown` and `plots` show it.
"""
