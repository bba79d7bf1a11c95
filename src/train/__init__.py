"""From configs to records: plan, worker, loop, engine."""
