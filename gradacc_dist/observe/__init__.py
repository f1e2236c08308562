"""What a run lets people see: the ledger, the progress line, the tables and the figure."""
