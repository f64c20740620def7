"""The leaderboard as a single HTML page: tables, charts and run records."""
