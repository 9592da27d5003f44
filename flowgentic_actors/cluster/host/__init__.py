"""The program that supervises a cluster's actors."""
