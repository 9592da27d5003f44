"""A cluster of a thousand nodes in one process: what decides is the real code, the rest a model.

python -m tests.simulation --nodes 1000 --hours 24 --seed 1 --plots images
"""
