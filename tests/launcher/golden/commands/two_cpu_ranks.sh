GRADACC_LAUNCH_ID=id-1 \
    GRADACC_EXITS=runs/x/launches/id-1/exits/try-1 \
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3600 \
    OMP_NUM_THREADS=4 \
    BIN/python -m accelerate.commands.launch --config_file CONFIGS/accelerate/cpu_ddp.yaml --num_processes 2 -m gradacc_dist.train --config run.yaml
