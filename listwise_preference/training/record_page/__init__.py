"""The page of ``--dry_run``."""
