GRADACC_LAUNCH_ID=id-1 \
    GRADACC_EXITS=runs/x/launches/id-1/exits/try-1 \
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3600 \
    OMP_NUM_THREADS=8 \
    BIN/python -m accelerate.commands.launch --config_file CONFIGS/accelerate/multinode_cpu_ddp.yaml --num_machines 2 --machine_rank 1 --main_process_ip n1 --main_process_port 29501 --num_processes 2 -m gradacc_dist.train --config run.yaml
