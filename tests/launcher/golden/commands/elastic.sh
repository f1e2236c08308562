GRADACC_LAUNCH_ID=id-1 \
    GRADACC_EXITS=runs/x/launches/id-1/exits/try-1 \
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3600 \
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 \
    BIN/python -m torch.distributed.run --nnodes 2:8 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint n1:29500 --rdzv-id id-1 --rdzv-conf last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3,read_timeout=10,join_timeout=600 --monitor-interval 0.5 --max-restarts 100 -m gradacc_dist.train --config run.yaml
