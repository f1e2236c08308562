GRADACC_LAUNCH_ID=id-1 \
    GRADACC_EXITS=runs/x/launches/id-1/exits/try-1 \
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3600 \
    OMP_NUM_THREADS=8 \
    CUDA_VISIBLE_DEVICES=-1 \
    BIN/python -m gradacc_dist.train --config run.yaml
