"""placeholder while the benchmark is written"""
