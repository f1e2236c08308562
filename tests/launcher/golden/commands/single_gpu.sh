GRADACC_LAUNCH_ID=id-1 \
    GRADACC_EXITS=runs/x/launches/id-1/exits/try-1 \
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3600 \
    BIN/python -m gradacc_dist.train --config run.yaml
