"""Several processes: the group, its watchdog, signals, worker processes and random streams."""
