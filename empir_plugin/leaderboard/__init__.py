"""Leaderboard: entries in RobustBench's format, the evidence they follow from, and submissions to RobustBench."""
