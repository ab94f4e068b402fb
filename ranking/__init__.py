"""How it works: each room answers one question of the paper, and arrows go down only."""
