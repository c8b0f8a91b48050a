"""What several tests share: worlds, runs, servers and screens to test against."""
