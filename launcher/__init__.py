"""`gradacc`: the same run on a laptop, a node, SLURM, Kubernetes. Starts ranks; no torch."""
